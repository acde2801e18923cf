"""Which views suit which data set."""

from nmoe.data.views.base import Views
from nmoe.data.views.colourful import ColourViews
from nmoe.data.views.digit import DigitViews
from nmoe.data.views.fashion import FashionViews


def views_for(dataset_name: str, image_shape: tuple[int, int, int]) -> Views:
    """Choose the views for a data set: colour images get ``ColourViews``, grey clothes ``FashionViews``, other grey images ``DigitViews``.

    Args:
        dataset_name: name of the data set, one of ``nmoe.data.NAMES`` or a user's own.
        image_shape: height, width and channels.

    Returns:
        Views with their default hyperparameters.

    Raises:
        ValueError: when there are not 1 or 3 channels.
    """
    channels = image_shape[2]
    if channels not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {channels}")
    if channels == 3:
        return ColourViews()
    return FashionViews() if dataset_name == "fashion-mnist" else DigitViews()
