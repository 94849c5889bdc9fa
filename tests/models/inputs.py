"""What networks are given, and what torchvision would give them."""

import torchvision


def input_of(module, call):
    """What a module is given as `call` runs it."""
    seen = []
    with module.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs)):
        call()
    (found,) = seen
    return found


def as_torchvision_sees(images):
    """Square images in [0, 1] as torchvision prepares them for its networks of ImageNet."""
    side = images.shape[-1]
    return torchvision.models.ResNet18_Weights.DEFAULT.transforms(crop_size=side, resize_size=side)(images)
