"""Code of somebody's own that keeps something, or only computes."""


def computes(x):
    return x


def keeps(x, kept=[]):  # noqa: B006
    return x, kept


def closing(value):
    return lambda x: (x, value)


def written(body, arguments="self, x", home="somebodys", **known):
    """A function with this body, as a module of this name would have it."""
    known["__name__"] = home
    exec(f"def written({arguments}):\n    {body}\n    return x", known)
    return known["written"]


class Holding:
    def __init__(self, value):
        self.value = value


class Ticking:
    def tick(self):
        self.calls = 1


class TickingOfClass:
    @classmethod
    def tick(cls):
        cls.calls = 1
