"""Parts of pages that are made from the code, and from measured results, when the site is built."""
