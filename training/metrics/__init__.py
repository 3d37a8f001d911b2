"""How far restored frames and estimates are from truth."""
