"""What a decoder is here: shape, presets, rotation, sharding, transformers releases."""
