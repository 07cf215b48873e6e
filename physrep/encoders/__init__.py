"""Architectures, without losses: clip [B, C, T, H, W] -> feature map [B, D, t, h, w]."""
