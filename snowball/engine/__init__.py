"""Every removal of a pretrained decoder in one pass."""
