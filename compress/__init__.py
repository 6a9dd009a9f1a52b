"""Smaller models from bigger ones: tensors and modules, no mail."""
