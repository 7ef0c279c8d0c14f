"""What can go wrong with a store, in words for people."""


class StoreError(ValueError):
    """A store that cannot be opened, read or written as asked."""


class Damaged(StoreError):
    """A file of the store does not hold what was written; nothing of it is believed.

    Args:
        file: the file's name within the store.
        what: what is wrong with it.
        url: the store, where it is known: then the text says what to do.
    """

    def __init__(self, file: str, what: str | None = None, url: str | None = None) -> None:
        # With one argument, its own text: so loaders of torch build what a worker has raised.
        text = file if what is None else f"{file} is damaged: {what}"
        if url is not None:
            text = (
                f"{url}/{text}; `python cache/show.py {url} --verify --prune` removes what cannot "
                "be read, and it is computed again when it is needed"
            )
        super().__init__(text)
        self.file = file
        self.what = what or ""
        self.url = url

    def __reduce__(self) -> tuple[type["Damaged"], tuple[str, str, str | None]]:
        return Damaged, (self.file, self.what, self.url)  # it crosses processes of a loader


class Missing(StoreError, KeyError):
    """An activation that the store does not hold, or not all rows of it."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show quotes
