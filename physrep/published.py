"""Numbers of the paper, as plain data, to stand beside ours and never among them."""

SOURCE = "arXiv 2603.13227v1, Tables 1 and 2"
DIFFERS = (
    "Scored on valid instead of test, one run each, without seeds or intervals; Schmidt and Prandtl on a linear scale; "
    "an attentive probe with all labels unless said. DISCO was pretrained on these datasets, too."
)
ENCODERS = {
    "JEPA": "CNN, 2.5 M, frozen",
    "VideoMAE": "ViT-S, 22 M, frozen",
    "DISCO": "embedding of 384, frozen",
    "MPP": "AViT-Ti, fine-tuned",
}
MSE = {  # dataset: method: share of labels: averaged over both standardised parameters
    "active_matter": {"JEPA": {1.0: 0.079}, "VideoMAE": {1.0: 0.160}, "DISCO": {1.0: 0.057}, "MPP": {1.0: 0.230}},
    "shear_flow": {
        "JEPA": {0.1: 0.57, 0.5: 0.40, 1.0: 0.38},
        "VideoMAE": {0.1: 0.98, 0.5: 0.75, 1.0: 0.67},
        "DISCO": {1.0: 0.13},
        "MPP": {1.0: 0.59},
    },
    "rayleigh_benard": {"JEPA": {1.0: 0.13}, "VideoMAE": {1.0: 0.18}, "DISCO": {1.0: 0.01}, "MPP": {1.0: 0.08}},
}
