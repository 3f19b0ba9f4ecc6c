"""Pictures of convolutions: kernels, feature maps, receptive fields, sliding windows, costs, the roofline.

kernels(model.conv1, "kernels.png")                               # learned weights
feature_maps(model, image, "layer1", "maps.png")                  # what a layer makes of an image
receptive_field(model, image, path="field.png")                   # what an output sees, drawn over the image
sliding_window((6, 6), 3, stride=2, padding=1, path="window.gif") # any geometry, as an animation
cost_bars(model, image, "cost.png")                               # parameters, operations, bytes, time per layer
roofline(model, image, "roofline.png")                            # the layers under this machine's roofs

Each returns a matplotlib figure (``sliding_window``: an animation), and saves it where a path is given. matplotlib is
imported when something is drawn, without pyplot and without touching anyone's backend; where it is missing, ImportError
says so: ``pip install convext[viz]``.
"""

from convext.viz.cost import cost_bars, roofline
from convext.viz.field import receptive_field
from convext.viz.maps import feature_maps, kernels
from convext.viz.window import sliding_window

__all__ = ["cost_bars", "feature_maps", "kernels", "receptive_field", "roofline", "sliding_window"]
