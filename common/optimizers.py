"""Optimisers: their learning rate, and what a checkpoint holds of them."""

import torch

MOMENTS = {
    torch.optim.RMSprop: {"square_avg"},
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: {"exp_avg", "exp_avg_sq"},
}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Set and return the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


class Resumable:
    """An optimiser whose moments are saved and restored; learning rate and the like stay what the flags say.

    Args:
        may_be_empty: whether parameters can have taken no step yet, as while fp16's loss scaler looks for its scale
            or a part of the network has not grown.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, may_be_empty: bool = False):
        self.optimizer, self.may_be_empty = optimizer, may_be_empty

    def state_dict(self) -> dict:
        return self.optimizer.state_dict()

    def load_state_dict(self, saved: dict) -> None:
        """Load the moments. ValueError when one does not fit its parameter."""
        groups = [dict(group) for group in self.optimizer.param_groups]
        numbered = [group["params"] for group in saved["param_groups"]]
        kept = [own | {"params": numbers} for own, numbers in zip(groups, numbered, strict=True)]
        self.optimizer.load_state_dict({**saved, "param_groups": kept})  # which also say where counts of steps belong
        for group, own in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(own)
            for parameter in group["params"]:
                self._check(parameter)

    def _check(self, parameter):
        state = self.optimizer.state.get(parameter, {})
        if self.may_be_empty and not state:
            return
        moments = {name for name, value in state.items() if value.shape == parameter.shape}
        if not MOMENTS[type(self.optimizer)] <= moments or not state.keys() <= moments | {"step"}:
            raise ValueError(f"state of {type(self.optimizer).__name__}")
