"""Recipes: one function per runnable experiment or demo."""
