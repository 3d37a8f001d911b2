"""The networks, each a plain `torch.nn.Module` built from a frozen configuration."""
