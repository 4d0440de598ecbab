"""The nouns of autocomp: what a search is about, independent of how anything is computed."""
