"""Backbones: small-image stems, timm models as HuggingFace classifiers, and weights read from files or from packages.

May import ``rts_hf.files``; ``small_image`` needs torch and timm alone, since a Space takes it along.
"""
