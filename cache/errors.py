"""Errors of a store."""

from shlex import quote


class StoreError(ValueError):
    """A store that cannot be opened, read or written as asked."""


class Damaged(StoreError):
    """A file of the store that does not hold what was written; none of it is used.

    Args:
        file: the file's name within the store.
        what: what is wrong with it.
        url: the store, if it is known: the message then says how to repair it.
    """

    def __init__(self, file: str, what: str | None = None, url: str | None = None) -> None:
        # torch's loaders rebuild a worker's exception from its text alone.
        text = file if what is None else f"{file} is damaged: {what}"
        if url is not None:
            text = (
                f"{url}/{text}; `python cache/show.py {quote(url)} --verify --prune` removes what "
                "cannot be read, and it is computed again when it is needed"
            )
        super().__init__(text)
        self.file = file
        self.what = what or ""
        self.url = url

    # Workers of a loader send it to the main process.
    def __reduce__(self) -> tuple[type["Damaged"], tuple[str, str, str | None]]:
        return Damaged, (self.file, self.what, self.url)


class StoreUnreachable(StoreError, OSError):
    """A remote store that does not answer, or refuses what was asked: it may work again later.

    What was committed is not in doubt. Whatever a remote client raises becomes this.
    """


class Missing(StoreError, KeyError):
    """An activation that the store does not hold, or not all rows of it."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show quotes
