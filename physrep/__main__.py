"""`python -m physrep`: what there is to run."""

import ast
from pathlib import Path

VERBS = ("simulate", "download", "verify", "show", "fit", "sweep", "probe", "report")

for verb in VERBS:
    place = Path(__file__).with_name(verb)
    source = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    said = (ast.get_docstring(ast.parse(source.read_text())) or "").splitlines()[0]
    print(f"python -m physrep.{verb:<9} {said}")
