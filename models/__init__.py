"""The networks by kind, as a checkpoint's config names it; configs of earlier versions are the needle network's."""

from torch import nn

from models.needle import ModelConfig, build_model

KINDS = {"needle": lambda config: build_model(ModelConfig.from_dict(config))}


def build(config: dict) -> nn.Module:
    """A freshly initialised network of a checkpoint's config; KeyError, TypeError, ValueError if it has none."""
    return KINDS[config.get("kind", "needle")](config)
