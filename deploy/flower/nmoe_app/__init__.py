"""The Flower app of nmoe: all of it is in nmoe.recipes.deploy, which every machine has installed."""
