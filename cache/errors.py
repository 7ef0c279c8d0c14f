"""What can go wrong with a store, in words for people."""


class StoreError(ValueError):
    """A store that cannot be opened, read or written as asked."""


class Damaged(StoreError):
    """A file of the store does not hold what was written; nothing of it is believed.

    Args:
        file: the file's name within the store.
        what: what is wrong with it.
    """

    def __init__(self, file: str, what: str) -> None:
        super().__init__(
            f"{file} is damaged: {what}; compute what it held again, or let "
            "`python cache/show.py STORE --prune` remove it"
        )
        self.file = file
        self.what = what

    def __reduce__(self) -> tuple[type["Damaged"], tuple[str, str]]:
        return Damaged, (self.file, self.what)  # it crosses processes of a loader


class Missing(KeyError):
    """An activation that the store does not hold, or not all rows of it."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show quotes
