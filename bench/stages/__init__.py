"""The stages of the GPU suite: each module has ``cases(stage) -> list[Case]``."""
