"""More than one process: how the operators act on sharded tensors, and images cut over devices.

DistributedDataParallel and FSDP2 (``fully_shard``) take a converted model as they take torch's; nothing here is needed
for them. Importing this package teaches DTensor the operators (:mod:`convext.distributed.sharding`);
:func:`spatial_shard` cuts an image that is too large for one device (:mod:`convext.distributed.spatial`).
"""

from convext.distributed import sharding
from convext.distributed.spatial import (
    SpatialReport,
    gather_spatial,
    scatter_spatial,
    spatial_shard,
)

sharding.register()

__all__ = ["SpatialReport", "gather_spatial", "scatter_spatial", "spatial_shard"]
