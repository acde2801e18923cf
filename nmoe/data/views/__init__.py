"""Views: the random augmentations of contrastive learning. A method is one file; ``views_for`` chooses by data set."""

from nmoe.data.views.base import Views, to_unit
from nmoe.data.views.choose import views_for
from nmoe.data.views.colourful import ColourViews
from nmoe.data.views.digit import DigitViews
from nmoe.data.views.fashion import FashionViews

__all__ = ["ColourViews", "DigitViews", "FashionViews", "Views", "to_unit", "views_for"]
