"""KV memory, counted in pages. Which page is which does not matter to the model, only how many are left."""

from __future__ import annotations


class PagePool:
    """A fixed number of pages, free or taken.

    >>> pool = PagePool(capacity_tokens=100, page_size=16)
    >>> pool.take(2)
    >>> pool
    <PagePool: 4 of 6 pages of 16 tokens free>
    """

    def __init__(self, capacity_tokens: int, page_size: int) -> None:
        """A pool of `capacity_tokens // page_size` pages.

        :raises ValueError: the capacity is less than one page, or the page size less than 1.
        """
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1, not {page_size}")
        if capacity_tokens < page_size:
            raise ValueError(f"capacity_tokens must hold at least one page of {page_size}, not {capacity_tokens}")
        self.page_size = page_size
        self.pages = capacity_tokens // page_size
        self.free_pages = self.pages

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit into the whole pool."""
        return self.pages * self.page_size

    @property
    def free_tokens(self) -> int:
        """Tokens that fit into the free pages."""
        return self.free_pages * self.page_size

    def pages_for(self, tokens: int) -> int:
        """Pages that `tokens` tokens need. O(1)."""
        return -(-tokens // self.page_size)

    def take(self, pages: int) -> None:
        """Take free pages. O(1)."""
        assert 0 <= pages <= self.free_pages, f"took {pages} of {self.free_pages} free pages"
        self.free_pages -= pages

    def give(self, pages: int) -> None:
        """Give pages back. O(1)."""
        assert 0 <= pages <= self.pages - self.free_pages, f"gave {pages} pages, {self.free_pages} of {self.pages} free"
        self.free_pages += pages

    def __repr__(self) -> str:
        return f"<PagePool: {self.free_pages} of {self.pages} pages of {self.page_size} tokens free>"
