"""Programs for those who work on vsfmanet."""
