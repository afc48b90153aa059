"""A run's folder on its way to the Hub, with a Space that shows the model, and the demo on one's own machine.

May import ``reports`` and what lies below it.
"""
