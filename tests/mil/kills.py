"""Deaths of a process at a chosen place, without starting one."""


class Killed(BaseException):
    """Nothing sees to the folder any more."""


def kill_at(monkeypatch, owner, name, call):
    """Die as a function is called for the n-th time."""
    function, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed)
