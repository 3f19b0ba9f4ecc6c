"""Problems as data, named for their hazard. ``str(problem)`` is the test id.

Sizes come from the constants of the kernels: vectors of 2, 4, 8 and 16 lanes; register blocks of 4, 6, 7, 8 and 14;
GEMM tiles of 8, 16 and 32 columns; strips of 64 pixels; blocks of 64 channels, 16 summed channels, 32 rows, 128 taps.
Each appears as tile - 1, tile, tile + 1, beside less than one tile and many. All are small: naive runs every one.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st

from benchmarks.shapes import ConvProblem, PoolProblem
from convext.padding import PADDING_MODES

AROUND_TILES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 31, 32, 33, 63, 64, 65)


def _conv(
    name: str, inputs: int, outputs: int, size: tuple[int, ...], kernel: tuple[int, ...], *tags: str, **rest: Any
) -> ConvProblem:
    return ConvProblem(name, (inputs, outputs), size, kernel, tags=frozenset(tags), **rest)


# Convolution ---------------------------------------------------------------------------------------------------------
# Tagged "core": the few that the more expensive tests run on.

CONV_TILES = (
    *(_conv(f"width_{n}", 3, 5, (4, n), (3, 3), padding=1) for n in AROUND_TILES),
    *(_conv(f"width_{n}_stride_2", 2, 3, (5, 2 * n), (3, 3), padding=1, stride=2) for n in (7, 8, 9, 15, 16, 17, 33)),
    *(_conv(f"outputs_{n}", 2, n, (3, 5), (3, 3), padding=1, bias=True) for n in AROUND_TILES),
    *(_conv(f"inputs_{n}", n, 3, (3, 5), (3, 3), padding=1) for n in AROUND_TILES),
    *(_conv(f"pixels_{n}_1x1", 5, 9, (1, n), (1, 1), bias=True) for n in AROUND_TILES),
    _conv("pixels_32_1x1_summed_400", 400, 7, (4, 8), (1, 1), batch=2, bias=True),
    _conv("pixels_224_1x1_outputs_97", 9, 97, (14, 16), (1, 1), batch=2, bias=True),
    _conv("pixels_224_1x1_outputs_95", 9, 95, (14, 16), (1, 1), bias=True),
    _conv("pixels_1024_1x1", 40, 7, (32, 32), (1, 1), bias=True),
    *(_conv(f"rows_{n}", 1, 2, (n, 3), (3, 3), padding=1) for n in (2, 14, 31, 32, 33, 65)),
    *(_conv(f"summed_{n}", n, 5, (2, 3), (1, 1)) for n in (127, 128, 129, 255, 256, 257, 511, 512, 513)),
    *(_conv(f"width_{n}_one_filter", 1, 1, (3, n), (3, 3), padding=1) for n in (127, 129, 255, 256, 257, 600)),
    # One output channel: strips of 8 and 4 rows, bands of 32 rows and 512 columns, planes as 24 kB hold, at most 64.
    *(
        _conv(f"one_output_rows_{n}", 5, 1, (n, 9), (3, 3), padding=1, bias=True)
        for n in (3, 4, 7, 8, 9, 31, 32, 33, 65)
    ),
    *(_conv(f"one_output_columns_{n}", 3, 1, (5, n), (3, 3), padding=1) for n in (7, 8, 9, 17, 511, 512, 513)),
    *(_conv(f"one_output_{n}_planes", n, 1, (4, 5), (2, 3), padding=1) for n in (2, 17, 18, 63, 64, 65, 130)),
    _conv("one_output_many_chunks", 40, 1, (17, 30), (5, 5), "core", padding=2, batch=2, bias=True),
    _conv("one_output_stride_2", 7, 1, (19, 40), (5, 5), "core", padding=2, stride=2),
    _conv("one_output_stride_2_1", 7, 1, (19, 21), (3, 4), padding=1, stride=(2, 1), flip_kernel=True),
    _conv("one_output_stride_1_2", 4, 1, (9, 33), (7, 3), padding=3, stride=(1, 2), padding_mode="reflect"),
    _conv("one_output_tall", 3, 1, (20, 12), (13, 3), padding=((6, 6), (1, 1)), dilation=(1, 2)),
    _conv("one_output_flipped_circular", 5, 1, (9, 10), (3, 3), padding=1, flip_kernel=True, padding_mode="circular"),
    _conv("one_output_in_groups", 12, 3, (9, 10), (3, 3), padding=1, groups=3, batch=2, bias=True),
    # Two to four, from eight inputs on: strips of 4, 3 and 2 rows; parts of a band's columns; planes that are far.
    *(
        _conv(f"{outs}_outputs_rows_{n}", 9, outs, (n, 9), (3, 3), padding=1, bias=True)
        for outs in (2, 3, 4)
        for n in (4, 5, 6, 7, 9, 13)
    ),
    *(_conv(f"three_outputs_columns_{n}", 8, 3, (5, n), (3, 3), padding=1) for n in (31, 32, 33, 65, 130, 513)),
    *(_conv(f"{outs}_outputs_stride_2", 8, outs, (19, 40), (5, 5), padding=2, stride=2) for outs in (2, 3, 4)),
    _conv("three_outputs_stride_1_2", 8, 3, (9, 33), (7, 3), padding=3, stride=(1, 2), padding_mode="reflect"),
    _conv("three_outputs_stride_2_1", 8, 3, (9, 33), (2, 4), stride=(2, 1), flip_kernel=True, bias=True),
    _conv("two_outputs_depths", 3, 2, (5, 6, 21), (3, 3, 3), padding=1, bias=True),
    _conv("four_outputs_in_groups", 24, 12, (9, 10), (3, 3), padding=1, groups=3, batch=2, bias=True),
    _conv("three_outputs_far", 18, 3, (62, 66), (3, 3), padding=1, batch=2, bias=True),
    _conv("two_outputs_far_stride_2", 18, 2, (62, 66), (3, 5), padding=1, stride=2, padding_mode="circular"),
    # Few inputs of a group: the gradient of the weight goes by planes, where rows are neither short nor long.
    *(
        _conv(f"few_inputs_{c}_width_{n}", c, 5, (7, n), (3, 3), padding=1, batch=2)
        for c, n in ((1, 5), (1, 70), (2, 11))
    ),
    *(
        _conv(f"few_inputs_{c}_width_{n}", c, 9, (14, n), (3, 3), padding=1)
        for c, n in ((2, 12), (3, 64), (4, 33), (5, 20))
    ),
    _conv("few_inputs_tall", 3, 4, (130, 40), (3, 3), padding=((2, 0), (0, 2)), batch=2, flip_kernel=True),
    _conv("few_inputs_of_groups", 12, 18, (9, 20), (3, 3), padding=1, groups=3, batch=2),
    _conv("few_inputs_stride_3", 1, 6, (10, 40), (3, 3), padding=1, stride=3),
    _conv("few_inputs_stride_2", 1, 6, (9, 40), (3, 3), padding=1, stride=2, batch=3),
    # Lines: windows that see no padding read the input itself.
    *(_conv(f"line_{n}", 3, 3, (n,), (4,), padding=((3, 0),), groups=3, bias=True) for n in (1, 3, 15, 17, 33, 80)),
    _conv("line_dilated", 2, 4, (150,), (5,), padding=20, dilation=9, groups=2, batch=2),
    _conv("line_reflected", 2, 2, (90,), (7,), padding=18, groups=2, flip_kernel=True, padding_mode="reflect"),
    _conv("line_narrower_than_its_kernel", 2, 2, (20,), (40,), padding=30, groups=2),
    _conv("line_in_bands", 1, 1, (13000,), (5,), padding=2),
    _conv("taps_121", 2, 3, (12, 13), (11, 11)),
    _conv("taps_128", 1, 3, (9, 18), (8, 16)),
    _conv("taps_129", 1, 2, (5, 44), (3, 43)),
    _conv("taps_289_padded", 1, 2, (10, 10), (17, 17), padding=8),
    _conv("many_tiles", 20, 37, (17, 19), (3, 3), "core", padding=1, bias=True),
    _conv("many_tiles_channels", 70, 70, (5, 6), (3, 3), padding=1, batch=2),
    # Fewer tiles than channels fill vectors: winograd turns contiguous planes, runs of 8 tiles at a time.
    _conv("turned_tiles", 32, 48, (11, 13), (3, 3), "core", padding=1, bias=True),
    _conv("turned_tiles_part_of_a_vector", 30, 45, (9, 21), (3, 3), padding=((1, 0), (2, 1)), batch=2, bias=True),
    _conv("turned_tiles_two_runs", 16, 31, (5, 70), (3, 3), padding=1),
    _conv("turned_tiles_of_groups", 64, 64, (7, 6), (3, 3), padding=1, groups=2),
    _conv("turned_tiles_5x5", 31, 16, (13, 10), (5, 5), padding=2),
    _conv("turned_tiles_stride_2", 32, 30, (15, 18), (3, 3), stride=2, padding=1),
    _conv("turned_tiles_4x4_stride_2", 32, 32, (10, 12), (4, 4), stride=2, padding=1, batch=2),
    _conv("turned_tiles_narrow", 32, 32, (9, 3), (3, 3), padding=((1, 1), (1, 0))),
    _conv("turned_tiles_1d", 32, 32, (37,), (3,), padding=1),
    _conv("turned_tiles_3d", 16, 32, (3, 7, 9), (3, 3, 3), padding=1),
    # One output channel, channels_last: weights of 8, 4, 3, 2 taps of a row stay in registers, or places are whole.
    _conv("one_output_15_taps", 19, 1, (6, 30), (2, 15), padding=((0, 1), (7, 7)), bias=True),
    _conv("one_output_7x7", 40, 1, (9, 21), (7, 7), padding=3, batch=2, flip_kernel=True),
    _conv("one_output_3x3_many_channels", 50, 1, (7, 18), (3, 3), padding=1, bias=True),
    # Few tiles, a large weight: its transform stays in registers.
    _conv("few_tiles", 190, 170, (7, 7), (3, 3), padding=1, bias=True),
    _conv("few_tiles_two_turns", 200, 165, (5, 7), (3, 3), padding=1, batch=2, flip_kernel=True),
    _conv("few_tiles_5x5", 180, 170, (4, 3), (5, 5), padding=2),
    _conv("blocks_of_places", 3, 9, (70, 40), (3, 3), padding=1, batch=2),
    _conv("blocks_of_places_many_weights", 65, 70, (20, 15), (3, 3), padding=1),
    _conv("images_in_a_block", 9, 12, (6, 6), (3, 3), "core", padding=1, batch=11),
    _conv("images_in_a_block_1x1", 12, 40, (6, 6), (1, 1), batch=11),
    # The gradient of the weight, channels_last: up to 4 channels side by side, lanes in place for up to 48 rows.
    *(_conv(f"first_layer_{n}", n, 32, (9, 21), (3, 3), padding=1, batch=2) for n in (2, 3, 4, 5, 6)),
    _conv("first_layer_7x7_stride_2", 3, 32, (23, 30), (7, 7), "core", stride=2, padding=3),
    _conv("first_layer_circular", 3, 32, (9, 10), (3, 3), padding=2, padding_mode="circular", flip_kernel=True),
    _conv("first_layer_reflect_stride_2_3", 4, 16, (9, 20), (3, 5), padding=2, stride=(2, 3), padding_mode="reflect"),
    _conv("first_layer_in_bands", 3, 16, (40, 340), (3, 3), padding=1),
    _conv("first_layer_images_in_a_block", 3, 64, (6, 7), (3, 3), padding=1, batch=9),
    _conv("last_layer_images_in_a_block", 64, 3, (6, 7), (3, 3), padding=((0, 2), (2, 1)), batch=5),
    _conv("first_layer_3d", 2, 32, (5, 6, 7), (3, 2, 3), padding=1, dilation=(2, 1, 1), stride=(1, 2, 1)),
    # The gradient of a pointwise weight: blocks of 384 places, parts of 1024, images of 128; 128 rows packed together.
    *(_conv(f"places_{n}_1x1", 13, 18, (n // 5, 5), (1, 1), batch=1 + n % 2) for n in (125, 130, 380, 385, 390)),
    _conv("parts_of_places_1x1", 17, 9, (33, 32), (1, 1), batch=2),
    _conv("blocks_of_rows_1x1", 5, 135, (20, 21), (1, 1), batch=2),
    _conv("many_weights_1x1", 190, 180, (6, 7), (1, 1), batch=3),
    _conv("many_weights_1x1_strided", 190, 180, (13, 14), (1, 1), stride=2, batch=2),
    _conv("winograd_stride_2_7x7", 3, 10, (25, 38), (7, 7), "core", stride=2, padding=3, batch=2, bias=True),
    _conv("winograd_stride_2_7x7_long_sums", 17, 5, (21, 18), (7, 7), stride=2, padding=((3, 2), (3, 3))),
    _conv("winograd_stride_2_8x8", 6, 18, (20, 23), (8, 8), stride=2, padding=3, groups=2, flip_kernel=True),
    _conv("winograd_stride_2_8x8_reflect", 20, 4, (15, 16), (8, 8), stride=2, padding=4, padding_mode="reflect"),
    _conv("winograd_stride_2_4x4", 9, 10, (13, 18), (4, 4), stride=2, padding=1, batch=2, bias=True),
    *(_conv(f"winograd_stride_2_width_{n}", 6, 17, (7, 2 * n), (4, 4), stride=2, padding=1) for n in (3, 4, 5, 31, 33)),
    _conv("winograd_stride_2_5x5", 17, 9, (15, 18), (5, 5), "core", stride=2, padding=((2, 1), (3, 0)), batch=3),
    _conv("winograd_stride_2_6x6_circular", 5, 18, (14, 9), (6, 6), stride=2, padding=2, padding_mode="circular"),
    _conv("winograd_2x2", 18, 19, (9, 22), (2, 2), "core", padding=1, batch=2, flip_kernel=True),
    _conv("strided_1x1", 24, 40, (20, 43), (1, 1), "core", stride=(3, 2), batch=2),
    _conv("whole_panels_1x1", 64, 70, (9, 8), (1, 1), "core", batch=2),
    _conv("tiles_in_every_dimension", 17, 15, (5, 35), (3, 3), "core", padding=1, batch=3, bias=True),
)

# Contiguous planes of 256 places and more, where little is summed over or outputs are few: conv_direct_planes.inl.
CONV_PLANES = (
    *(_conv(f"planes_outputs_{n}", 2, n, (16, 17), (3, 3), padding=1, bias=True) for n in (2, 3, 4, 5, 7, 8, 9, 15)),
    *(
        _conv(f"planes_width_{n}", 3, 5, (256 // n + 1, n), (3, 3), padding=1)
        for n in (7, 8, 9, 15, 16, 23, 24, 25, 31, 32, 33, 47, 48, 49, 71, 73)
    ),
    _conv("planes_stride_2", 3, 9, (37, 35), (7, 7), "core", padding=3, stride=2, bias=True),
    _conv("planes_stride_3_2_flipped", 2, 3, (50, 40), (2, 4), stride=(3, 2), flip_kernel=True),
    _conv("planes_dilated_circular", 3, 4, (20, 21), (3, 3), padding=2, dilation=2, padding_mode="circular"),
    _conv("planes_per_side_reflect", 3, 6, (15, 19), (3, 4), padding=((2, 1), (0, 3)), padding_mode="reflect"),
    _conv("planes_wider_than_a_band", 2, 3, (3, 530), (3, 3), padding=1, batch=2),
    _conv("planes_15x15", 1, 5, (18, 20), (15, 15), padding=7),
    _conv("planes_groups", 6, 9, (16, 18), (3, 3), padding=1, groups=3, bias=True),
    _conv("planes_3d", 2, 5, (5, 8, 9), (3, 3, 3), "core", padding=1, padding_mode="replicate"),
    _conv("planes_3d_stride_2", 3, 3, (8, 17, 19), (3, 3, 3), padding=1, stride=2),
    *(_conv(f"planes_sums_wait_{k}", 40, k, (17, 33), (3, 3), padding=1, bias=True, batch=2) for k in (1, 2, 3, 4, 7)),
    _conv("planes_sums_wait_wide", 30, 3, (2, 300), (3, 3), padding=1),
    _conv("planes_sums_wait_stride_2_reflect", 50, 5, (34, 35), (3, 3), padding=1, stride=2, padding_mode="reflect"),
    _conv("planes_sums_wait_3d", 20, 2, (3, 10, 12), (3, 3, 3), padding=1),
    _conv("planes_1d", 3, 5, (1300,), (5,), padding=2),
    _conv("planes_1d_sums_wait", 90, 3, (700,), (15,), padding=7, batch=2),
)

CONV_STRIDES = (
    _conv("stride_2", 3, 4, (9, 11), (3, 3), "core", stride=2, padding=1),
    _conv("stride_2_even", 3, 4, (10, 12), (3, 3), stride=2, padding=1),
    _conv("stride_3", 3, 4, (11, 14), (3, 3), stride=3, padding=1),
    _conv("stride_larger_than_kernel", 3, 4, (9, 10), (2, 2), stride=3),
    _conv("stride_leaves_places_unseen", 2, 3, (8, 8), (1, 1), stride=3),
    _conv(
        "stride_sees_not_the_one_place", 2, 3, (6, 1), (3, 2), stride=(1, 2), dilation=(1, 2), padding=((2, 0), (3, 2))
    ),
    _conv("stride_in_slices", 3, 4, (21, 23), (4, 5), stride=2, padding=(1, 2), batch=3),
    _conv("padding_beyond_the_kernel", 3, 9, (7, 18), (2, 3), padding=((4, 3), (5, 0)), stride=(2, 1), batch=2),
    _conv("stride_per_dimension", 3, 4, (9, 11), (3, 2), stride=(1, 3), padding=(1, 0)),
    _conv("stride_larger_than_input", 2, 3, (4, 5), (3, 3), stride=7, padding=1),
    _conv("dilation_2", 3, 4, (9, 11), (3, 3), "core", dilation=2, padding=2),
    _conv("dilation_3", 2, 3, (11, 13), (3, 3), dilation=3, padding=1),
    _conv("dilation_per_dimension", 2, 3, (9, 11), (2, 3), dilation=(3, 2), padding=(0, 1)),
    _conv("stride_2_dilation_3", 2, 3, (13, 15), (3, 3), "core", stride=2, dilation=3, padding=4),
    _conv("stride_3_dilation_2", 2, 3, (13, 15), (3, 3), stride=3, dilation=2, padding=2),
    _conv("stride_2_dilation_2", 2, 3, (13, 16), (3, 4), stride=2, dilation=2, padding=2),
    _conv("dilation_reaches_both_edges", 2, 3, (9, 9), (2, 2), dilation=8),
    _conv("stem_7x7_stride_2", 3, 8, (21, 23), (7, 7), "core", stride=2, padding=3, bias=True),
)

CONV_PADDINGS = (
    *(
        _conv(f"{mode}_per_side", 3, 4, (5, 6), (3, 3), "core", padding=((2, 1), (0, 3)), padding_mode=mode)
        for mode in PADDING_MODES
    ),
    *(
        _conv(f"{mode}_stride_2_dilation_2", 2, 3, (7, 6), (3, 2), stride=2, dilation=2, padding=2, padding_mode=mode)
        for mode in PADDING_MODES
    ),
    *(
        _conv(f"{mode}_grouped_wide", 6, 8, (4, 33), (3, 3), padding=1, groups=2, padding_mode=mode)
        for mode in PADDING_MODES
    ),
    *(
        _conv(f"{mode}_same_stride_2", 3, 4, (8, 7), (3, 4), padding="same", stride=2, padding_mode=mode)
        for mode in PADDING_MODES
    ),
    *(
        _conv(f"{mode}_one_place", 2, 3, (1, 4), (2, 2), padding=((1, 0), (0, 1)), padding_mode=mode)
        for mode in ("zeros", "replicate", "circular", "symmetric")
    ),
    *(
        _conv(f"{mode}_as_wide_as_input", 2, 3, (4, 3), (3, 3), padding=((4, 4), (3, 3)), padding_mode=mode)
        for mode in ("replicate", "circular", "symmetric")
    ),
    _conv("reflect_as_wide_as_possible", 2, 3, (4, 3), (3, 3), padding=((3, 3), (2, 2)), padding_mode="reflect"),
    _conv("replicate_wider_than_input", 2, 3, (2, 3), (3, 3), padding=5, padding_mode="replicate"),
    _conv("padding_larger_than_kernel", 2, 3, (4, 5), (2, 3), padding=(4, 5)),
    _conv("padding_larger_than_input", 2, 3, (2, 2), (5, 5), padding=6),
    _conv("outputs_that_see_only_padding", 2, 3, (3, 3), (2, 2), padding=((5, 0), (0, 5)), stride=2, bias=True),
    _conv("same_even_kernel", 3, 4, (7, 8), (2, 4), padding="same"),
    _conv("same_lower_even_kernel", 3, 4, (7, 8), (2, 4), padding="same_lower"),
    _conv("same_stride_3_dilation_2", 3, 4, (10, 11), (3, 4), padding="same", stride=3, dilation=2),
    _conv("same_lower_stride_3_dilation_2", 3, 4, (10, 11), (3, 4), padding="same_lower", stride=3, dilation=2),
    _conv("valid", 3, 4, (5, 6), (3, 3), padding="valid"),
    _conv("before_only", 2, 3, (5, 6), (3, 3), padding=((2, 0), (2, 0))),
    _conv("after_only", 2, 3, (5, 6), (3, 3), padding=((0, 2), (0, 2))),
)

CONV_GROUPS = (
    _conv("groups_2", 6, 8, (5, 7), (3, 3), "core", groups=2, padding=1, bias=True),
    _conv("groups_3_odd_channels", 9, 15, (5, 7), (3, 3), groups=3, padding=1),
    _conv("groups_wide", 34, 66, (3, 5), (3, 3), groups=2, padding=1),
    _conv("groups_1x1", 12, 20, (3, 5), (1, 1), groups=4),
    _conv("groups_stride_2_flipped", 6, 4, (7, 9), (3, 2), groups=2, stride=2, flip_kernel=True),
    *(
        _conv(f"depthwise_{c}", c, c, (5, 6), (3, 3), groups=c, padding=1, bias=True)
        for c in (2, 3, 4, 5, 8, 15, 16, 17, 33, 64, 65)
    ),
    *(_conv(f"depthwise_multiplier_{m}", 5, 5 * m, (6, 9), (3, 3), "core", groups=5, padding=1) for m in (2, 3)),
    _conv("depthwise_multiplier_3_wide", 17, 51, (4, 18), (3, 3), groups=17, padding=1, stride=2),
    _conv("depthwise_stride_2", 6, 6, (9, 11), (3, 3), "core", groups=6, padding=1, stride=2),
    _conv(
        "depthwise_dilation_2_reflect", 6, 6, (9, 11), (3, 3), groups=6, padding=2, dilation=2, padding_mode="reflect"
    ),
    _conv("depthwise_many_places", 20, 20, (18, 19), (3, 3), "core", groups=20, padding=1, batch=2),
    # Contiguous planes so narrow that a vector of channels is turned.
    _conv("depthwise_narrow", 32, 32, (7, 7), (3, 3), "core", groups=32, padding=1, bias=True, batch=2),
    _conv("depthwise_narrow_5x5_stride_2", 48, 48, (9, 10), (5, 5), groups=48, padding=2, stride=2),
    _conv("depthwise_narrow_reflect", 32, 32, (6, 5), (3, 3), groups=32, padding=2, padding_mode="reflect"),
    _conv("depthwise_narrow_flipped", 16, 16, (12, 3), (3, 2), groups=16, padding=(1, 0), flip_kernel=True),
    _conv("depthwise_narrow_160_places", 16, 16, (16, 10), (3, 3), groups=16, padding=1),
    _conv("depthwise_narrow_3d", 16, 16, (3, 5, 6), (3, 3, 3), groups=16, padding=1),
    _conv("depthwise_13x13", 3, 3, (15, 17), (13, 13), groups=3, padding=6),
    _conv("depthwise_circular_multiplier_2", 4, 8, (5, 6), (3, 3), groups=4, padding=2, padding_mode="circular"),
    _conv("depthwise_4x6_stride_3_2", 3, 6, (11, 40), (4, 6), groups=3, stride=(3, 2), padding=((1, 2), (3, 5))),
    _conv("depthwise_7x2_stride_1_2", 3, 3, (9, 70), (7, 2), groups=3, stride=(1, 2), padding=3, flip_kernel=True),
    _conv("depthwise_3x1_stride_2", 4, 4, (8, 9), (3, 1), groups=4, stride=2, batch=2),
    _conv("depthwise_reflect_stride_2", 5, 5, (8, 9), (5, 5), groups=5, stride=2, padding=2, padding_mode="reflect"),
    _conv("depthwise_flipped", 5, 5, (6, 7), (2, 3), groups=5, flip_kernel=True),
    _conv("depthwise_one_place_each", 19, 19, (1, 1), (1, 1), groups=19),
    *(
        _conv(f"depthwise_rows_{n}", 3, 3, (n, 9), (3, 3), groups=3, padding=1, bias=True)
        for n in (1, 3, 4, 7, 8, 9, 15)
    ),
    *(_conv(f"depthwise_columns_{n}", 17, 17, (2, n), (3, 3), groups=17, padding=1) for n in (6, 7, 8, 14, 15, 33)),
    *(
        _conv(f"depthwise_columns_{n}_stride_2", 17, 17, (9, n), (5, 5), groups=17, padding=2, stride=2)
        for n in (13, 31, 35)
    ),
    *(_conv(f"depthwise_{k}x{k}", 17, 17, (9, 12), (k, k), groups=17, padding=k // 2) for k in (5, 6, 7, 8, 9, 14)),
    # Planes that are read where they lie: all but the first and the last.
    *(
        _conv(f"depthwise_in_place_{h}x{w}", 6, 6, (h, w), (3, 3), groups=6, padding=1)
        for h, w in ((4, 30), (11, 16), (20, 47))
    ),
    _conv("depthwise_in_place_7x5", 5, 5, (13, 40), (7, 5), groups=5, padding=(3, 0), bias=True, batch=2),
    _conv("depthwise_in_place_dilated", 4, 8, (9, 50), (3, 3), groups=4, padding=(2, 4), dilation=(1, 3)),
    _conv("depthwise_in_place_wide", 4, 4, (5, 300), (5, 5), groups=4, padding=2, flip_kernel=True),
    _conv("depthwise_rows_of_padding", 3, 3, (1, 52), (1, 3), groups=3, padding=(1, 2), batch=2),
    _conv("depthwise_17x17", 18, 18, (19, 21), (17, 17), groups=18, padding=8),
    _conv("depthwise_wider_than_a_band", 2, 2, (5, 300), (3, 3), groups=2, padding=1, batch=2),
    _conv("depthwise_wider_than_a_band_many_channels", 9, 9, (5, 600), (3, 3), groups=9, padding=1, batch=2),
    # The gradient of the weight of planes: vectors of 8 or 16 columns, bands of 3072 elements, edges of the tensor.
    *(
        _conv(f"depthwise_planes_{n}", 3, 3, (7, n), (3, 3), groups=3, padding=((2, 0), (0, 2)))
        for n in (14, 16, 18, 32)
    ),
    *(
        _conv(f"depthwise_planes_{n}_stride_2", 3, 3, (8, n), (3, 3), groups=3, stride=2, padding=((0, 2), (1, 1)))
        for n in (15, 16, 17, 31, 32, 33, 65)
    ),
    *(_conv(f"depthwise_planes_padding_{n}", 5, 5, (3, 4), (3, 3), groups=5, padding=n, batch=2) for n in (2, 3, 20)),
    _conv("depthwise_planes_padding_20_stride_2", 5, 5, (3, 4), (3, 3), groups=5, padding=20, stride=2),
    _conv("depthwise_planes_flipped", 70, 70, (4, 5), (3, 3), groups=70, padding=1, flip_kernel=True),
    _conv("depthwise_planes_in_bands", 2, 2, (45, 90), (3, 3), groups=2, padding=1),
    _conv("depthwise_planes_in_bands_stride_2", 2, 2, (45, 90), (3, 3), groups=2, padding=1, stride=2),
    _conv("depthwise_several_blocks_of_channels", 530, 530, (3, 8), (3, 3), groups=530, padding=1),
    _conv("one_filter_stride_2", 1, 1, (11, 40), (5, 5), padding=2, stride=2, bias=True),
    _conv("groups_of_2", 26, 26, (5, 9), (3, 3), "core", groups=13, padding=1, bias=True),
    _conv("groups_of_4", 36, 36, (5, 9), (3, 3), groups=9, padding=1, stride=2),
    _conv("groups_of_4_many_places", 12, 12, (40, 21), (3, 3), groups=3, padding=1),
    _conv("groups_of_4_dilated", 20, 20, (7, 11), (3, 3), groups=5, padding=2, dilation=2, padding_mode="circular"),
    # Its rows of taps are cut into blocks of up to 8, places go by four.
    *(
        _conv(f"groups_of_{n}_taps_{t}", 16 + n, 16 + n, (5, 12 + t), (4, t), groups=(16 + n) // n, padding=(2, t // 2))
        for n, t in ((2, 3), (2, 7), (4, 4), (4, 8), (4, 17), (1, 31))
    ),
    # The gradient of the input at a stride of 2, planes: either parity of the padding, pairs of vectors of columns.
    *(
        _conv(f"depthwise_pairs_{n}_padding_{p}", 5, 5, (5, n), (3, 3), groups=5, padding=((1, 0), (p, 1)), stride=2)
        for n, p in ((31, 1), (32, 1), (33, 0), (63, 2), (64, 1), (65, 2), (66, 3), (130, 1))
    ),
)

CONV_RANKS = (
    *(_conv(f"conv1d_width_{n}", 3, 5, (n,), (3,), padding=1) for n in (1, 2, 7, 8, 15, 16, 17, 33, 65)),
    _conv("conv1d", 4, 6, (40,), (5,), "core", padding=2, batch=2, bias=True),
    _conv("conv1d_stride_2_dilation_3", 3, 4, (21,), (3,), stride=2, dilation=3, padding=((1, 4),)),
    *(
        _conv(f"conv3d_one_output_{mode}", 5, 1, (4, 9, 10), (3, 3, 2), "core", padding=1, padding_mode=mode, bias=True)
        for mode in ("zeros", "replicate")
    ),
    _conv("conv3d_one_plane_deep", 1, 1, (5, 9, 10), (3, 3, 3), padding=1, stride=(2, 1, 1), flip_kernel=True),
    _conv("conv1d_causal_depthwise", 18, 18, (33,), (4,), "core", groups=18, padding=((3, 0),), batch=2),
    _conv("conv1d_reflect_flipped", 3, 4, (9,), (4,), padding=3, padding_mode="reflect", flip_kernel=True),
    _conv("conv1d_same_lower_stride_3", 2, 3, (16,), (5,), padding="same_lower", stride=3),
    *(
        _conv(
            f"conv3d_{mode}_per_side", 2, 3, (4, 3, 5), (3, 2, 3), padding=((1, 2), (1, 0), (0, 2)), padding_mode=mode
        )
        for mode in PADDING_MODES
    ),
    _conv("conv3d", 3, 5, (5, 6, 7), (3, 3, 3), "core", padding=1, batch=2, bias=True),
    _conv("conv3d_wide", 9, 17, (2, 3, 17), (2, 3, 3), padding=((0, 0), (1, 1), (1, 1))),
    _conv("conv3d_stride_2", 2, 4, (6, 7, 9), (3, 3, 3), "core", stride=2, padding=1),
    _conv(
        "conv3d_stride_dilation_per_dimension",
        2,
        3,
        (7, 6, 9),
        (2, 3, 2),
        stride=(1, 2, 3),
        dilation=(3, 2, 1),
        padding=1,
    ),
    _conv("conv3d_depthwise_multiplier_2", 3, 6, (4, 5, 6), (3, 3, 3), groups=3, padding=1),
    _conv("conv3d_groups_flipped", 4, 6, (3, 4, 9), (2, 2, 3), groups=2, flip_kernel=True, batch=2),
    _conv("conv3d_1x1x1", 5, 17, (2, 3, 4), (1, 1, 1)),
    _conv("conv3d_same_stride_2", 2, 3, (5, 4, 7), (3, 2, 3), padding="same", stride=2),
)

CONV_DEGENERATE = (
    _conv("one_of_everything", 1, 1, (1, 1), (1, 1), bias=True),
    _conv("kernel_as_large_as_input", 3, 5, (6, 7), (6, 7), "core", bias=True),
    _conv("kernel_as_large_as_padded_input", 3, 5, (4, 5), (6, 9), padding=(1, 2)),
    _conv("kernel_1xn", 3, 4, (5, 9), (1, 7), padding=(0, 3)),
    _conv("kernel_nx1", 3, 4, (9, 5), (7, 1), padding=(3, 0)),
    _conv("kernel_1x1_padded_strided", 3, 4, (5, 6), (1, 1), padding=2, stride=2, bias=True),
    _conv("kernel_2x2", 3, 4, (5, 6), (2, 2)),
    _conv("kernel_5x5", 3, 4, (9, 10), (5, 5), padding=2, flip_kernel=True),
    _conv("flipped", 3, 4, (6, 7), (3, 2), "core", flip_kernel=True, padding=1, bias=True),
    _conv("one_channel", 1, 1, (6, 7), (3, 3), padding=1),
    _conv("one_input_channel", 1, 6, (9, 10), (5, 5), batch=2, bias=True),
    _conv("one_output_channel", 6, 1, (9, 10), (3, 3), padding=1),
    *(_conv(f"last_layer_{k}", 21, k, (4, 11), (3, 3), padding=1, bias=True) for k in (1, 2, 3, 4)),
    _conv("last_layer_padding_larger_than_kernel", 21, 2, (4, 5), (2, 3), padding=(4, 5)),
    _conv("last_layer_flipped_dilation_2", 20, 3, (7, 9), (3, 2), padding=1, dilation=2, flip_kernel=True),
    _conv("last_layer_stride_2_reflect", 17, 3, (7, 9), (3, 3), "core", padding=1, stride=2, padding_mode="reflect"),
    _conv("first_layer_wide", 3, 35, (3, 37), (3, 3), padding=1, bias=True, batch=2),
    _conv("first_layer_wider_than_a_tile", 4, 17, (3, 700), (3, 3), padding=1),
    _conv("odd_channels", 7, 11, (5, 6), (3, 3), padding=1, batch=3),
    _conv("batch_2", 3, 4, (5, 6), (3, 3), batch=2),
    _conv("batch_3_one_place", 5, 6, (3, 3), (3, 3), batch=3),
    _conv("batch_5_1x1_one_place", 17, 33, (1, 1), (1, 1), batch=5),
    _conv("batch_3_1x1_one_place_groups", 12, 20, (1, 1), (1, 1), groups=4, batch=3, bias=True),
    _conv("outputs_cut_before_places_1x1", 20, 200, (7, 7), (1, 1), bias=True),
    _conv("outputs_cut_before_places_stride_2", 18, 150, (5, 6), (3, 3), stride=2, padding=1, bias=True),
    _conv("outputs_and_places_cut_1x1", 17, 70, (8, 8), (1, 1), batch=2),
)

# Gradients of the input that go by col2im: windows that see little of what surrounds them. Panels of 8 to 32 input
# channels, 384 summed ones, padding in the tile, places that no window reaches, one output, 1x1 strides.
CONV_COL2IM = (
    *(_conv(f"col2im_inputs_{n}", n, 5, (6, 7), (5, 5), batch=2) for n in (17, 33, 65)),
    _conv("col2im_summed_400", 33, 400, (4, 4), (3, 3)),
    _conv("col2im_dilated_padded", 34, 9, (9, 8), (5, 3), "core", padding=2, dilation=(2, 3), batch=2),
    _conv("col2im_flipped_groups", 72, 12, (7, 9), (3, 4), dilation=2, groups=2, flip_kernel=True),
    _conv(
        "col2im_strided_unreached", 40, 6, (12, 13), (5, 5), "core", stride=(3, 2), padding=((0, 1), (1, 0)), batch=2
    ),
    _conv("col2im_one_output", 40, 11, (7, 7), (7, 7)),
    _conv("col2im_depths", 40, 6, (5, 6, 7), (3, 3, 3), "core", dilation=(1, 2, 2), batch=2),
    _conv("col2im_line", 70, 8, (21,), (9,), dilation=2),
    _conv("col2im_reflect", 40, 5, (9, 8), (7, 6), padding=2, dilation=(2, 1), padding_mode="reflect"),
)

# channels_last: fewer channels than a vector has lanes, tiles of 7 columns.
CONV_FEW_LANES = (
    *(_conv(f"few_lanes_{n}_7x7", n, n, (7, 15), (7, 7), padding=3, groups=n, bias=True) for n in (3, 5, 8, 15)),
    _conv("few_lanes_3x3_stride_2", 7, 7, (5, 17), (3, 3), padding=1, stride=2, groups=7),
    _conv("few_lanes_5x5_dilated", 5, 5, (9, 16), (5, 5), padding=4, dilation=2, groups=5, batch=2),
    _conv("few_lanes_groups_of_4", 12, 12, (4, 16), (3, 3), padding=1, groups=3),
    _conv("few_lanes_groups_of_2_stride_2", 6, 6, (5, 19), (3, 3), padding=1, stride=2, groups=3, batch=2),
)

# Forward as the gradient of another convolution's input, where taps mostly see padding: panels of 16, 32 and 48 output
# channels, sums of up to 384 terms, taps that nobody sees through, rows cut on either side.
CONV_CLIPPED = (
    *(_conv(f"clipped_outputs_{n}", 5, n, (6, 7), (5, 5), padding=4, batch=2, bias=True) for n in (17, 33, 49)),
    _conv("clipped_summed_400", 400, 33, (4, 5), (3, 3), padding=3, dilation=3),
    _conv("clipped_dilated", 9, 34, (9, 8), (3, 3), "core", padding=(6, 7), dilation=(6, 7), batch=2, bias=True),
    _conv("clipped_unseen_taps", 7, 40, (5, 6), (3, 3), padding=9, dilation=9, bias=True),
    _conv("clipped_uneven", 6, 40, (8, 5), (5, 4), "core", padding=((7, 1), (0, 6)), dilation=(2, 2), flip_kernel=True),
    _conv("clipped_groups", 12, 72, (7, 9), (3, 5), padding=(5, 8), dilation=(4, 3), groups=2),
    _conv("clipped_beyond_reach", 5, 40, (3, 4), (2, 2), padding=5),
    _conv("clipped_depths", 6, 40, (4, 5, 6), (3, 3, 3), "core", padding=3, dilation=3, batch=2),
    _conv("clipped_line", 8, 70, (15,), (9,), padding=12, dilation=3, bias=True),
)

# Windows that do not overlap, as pointwise convolutions: rows shorter than a vector, taps moved together from four on,
# rows and columns that no window sees, weights of either order.
CONV_PATCHES = (
    _conv("patches_16x16", 3, 20, (48, 64), (16, 16), "core", stride=16, batch=2, bias=True),
    _conv("patches_4x4_rest", 5, 7, (19, 22), (4, 4), stride=4, batch=3),
    _conv("patches_2x2", 6, 9, (15, 30), (2, 2), "core", stride=2, batch=2, bias=True),
    _conv("patches_2x2_padded", 6, 9, (15, 30), (2, 2), stride=2, padding=1),
    *(_conv(f"patches_2x2_width_{n}", 3, 4, (4, n), (2, 2), stride=2) for n in (8, 16, 17, 31, 33, 34)),
    _conv("patches_3x2_gaps", 4, 17, (20, 13), (3, 2), "core", stride=(5, 4), padding=((1, 2), (2, 0))),
    _conv("patches_dilated", 4, 5, (17, 25), (2, 3), stride=(3, 5), dilation=2, flip_kernel=True),
    _conv("patches_flipped", 5, 6, (16, 24), (4, 8), stride=(4, 8), flip_kernel=True),
    _conv("patches_1x1_stride_2", 9, 20, (9, 14), (1, 1), "core", stride=2, batch=2),
    _conv("patches_1x1_stride_2_3_padded", 9, 7, (5, 6), (1, 1), stride=(2, 3), padding=1),
    _conv("patches_groups", 6, 8, (8, 12), (4, 4), stride=4, groups=2, bias=True),
    _conv("patches_depths", 4, 18, (5, 7, 9), (2, 2, 2), "core", stride=2, padding=1, batch=2),
    _conv("patches_one_place", 5, 7, (3, 4), (3, 4), stride=(3, 4), batch=3),
    _conv("patches_line", 6, 7, (50,), (8,), stride=8, batch=2),
)

# Dilations by winograd, phase by phase: phases of unequal sizes, of one place, more than there are places; channels
# that fill vectors (whose phases are turned) and others.
CONV_DILATED = (
    _conv("phases_3x3", 17, 18, (13, 11), (3, 3), "core", padding=2, dilation=2, batch=2, bias=True),
    _conv("phases_5x5_uneven", 5, 6, (21, 19), (5, 5), padding=(6, 4), dilation=(3, 2)),
    _conv("phases_2x2", 6, 5, (9, 12), (2, 2), "core", dilation=(4, 3), flip_kernel=True),
    _conv("phases_rows_only", 20, 16, (11, 9), (3, 3), padding=((3, 1), (0, 2)), dilation=(3, 1)),
    _conv("phases_of_one_place", 16, 17, (7, 9), (3, 3), padding=(9, 12), dilation=(9, 12), bias=True),
    _conv("phases_reflect", 7, 5, (9, 8), (3, 3), padding=3, dilation=3, padding_mode="reflect"),
    _conv(
        "phases_circular", 18, 16, (9, 8), (3, 3), "core", padding=((3, 1), (2, 3)), dilation=2, padding_mode="circular"
    ),
    _conv("phases_groups", 32, 34, (10, 9), (3, 3), padding=4, dilation=4, groups=2, batch=2),
    _conv("phases_depths", 5, 6, (7, 6, 8), (3, 3, 3), "core", padding=2, dilation=(1, 2, 3), batch=2),
    _conv("phases_line", 6, 18, (40,), (3,), padding=4, dilation=4, batch=2, bias=True),
)

CONVOLUTIONS = CONV_TILES + CONV_PLANES + CONV_STRIDES + CONV_PADDINGS + CONV_GROUPS + CONV_RANKS + CONV_DEGENERATE
CONV_CORE = tuple(p for p in CONVOLUTIONS if "core" in p.tags)

# For GPUs: what implicit_gemm's Hopper variant takes in channels_last and 16 bits, and no less than its tiles.
CONV_HOPPER = (
    _conv("hopper_3x3", 64, 72, (13, 21), (3, 3), "core", padding=1, bias=True),
    _conv("hopper_3x3_images", 128, 64, (7, 7), (3, 3), padding=1, batch=9),
    _conv("hopper_many_tiles", 32, 136, (65, 65), (1, 1), "core", batch=8, bias=True),  # enough for 256 pixels a tile
    _conv("hopper_1x1", 64, 136, (9, 15), (1, 1), "core", batch=2, bias=True),
    _conv("hopper_1x1_stride_2", 136, 64, (9, 16), (1, 1), stride=2, batch=3),
    _conv("hopper_stride_2", 72, 64, (18, 23), (3, 3), "core", padding=1, stride=2, batch=2),
    _conv("hopper_stem_stride_3_2", 32, 40, (22, 25), (5, 7), padding=(2, 3), stride=(3, 2)),
    _conv("hopper_dilated", 40, 48, (15, 17), (3, 3), padding=((4, 1), (0, 3)), dilation=(2, 3), flip_kernel=True),
    _conv("hopper_padding_beyond_the_kernel", 64, 64, (5, 6), (2, 3), padding=((4, 3), (5, 0)), batch=2),
    _conv("hopper_groups", 128, 256, (6, 9), (3, 3), padding=1, groups=2, bias=True),
    _conv("hopper_3d", 64, 40, (5, 8, 9), (3, 3, 3), "core", padding=1, batch=2),
    _conv("hopper_3d_stride_2", 32, 64, (7, 8, 9), (3, 2, 3), padding=(1, 0, 1), stride=2),
)


# Pooling -------------------------------------------------------------------------------------------------------------
# A window is written once and pooled both ways.


def _max(
    name: str, channels: int, size: tuple[int, ...], kernel: tuple[int, ...], *tags: str, **rest: Any
) -> PoolProblem:
    return PoolProblem(name, False, channels, size, kernel, tags=frozenset(tags), **rest)


POOL_WINDOWS = (
    *(_max(f"width_{n}", 2, (4, n), (3, 3), stride=1, padding=1) for n in AROUND_TILES),
    *(_max(f"width_{n}_stride_2", 2, (6, 2 * n), (2, 2)) for n in (1, 3, 4, 7, 8, 9, 15, 16, 17, 33)),
    *(_max(f"width_{n}_3_stride_2", 2, (7, n), (3, 3), stride=2, padding=1) for n in (2, 15, 16, 17, 31, 32, 33, 65)),
    *(_max(f"channels_{n}", n, (4, 5), (2, 3), stride=1) for n in AROUND_TILES),
    _max("wider_than_a_chunk", 1, (2, 1100), (2, 3), stride=1, padding=(0, 1)),
    _max("wider_than_a_chunk_stride_2", 1, (2, 1300), (2, 3), stride=2, padding=(0, 1)),
    _max("rows_65", 1, (65, 3), (3, 3), stride=2, padding=1),
    _max("stem_3_stride_2_padding_1", 3, (17, 19), (3, 3), "core", stride=2, padding=1, batch=2),
    _max("halves", 5, (8, 10), (2, 2), "core"),
    _max("halves_odd_sizes", 5, (9, 11), (2, 2)),
    _max("halves_ceil", 5, (9, 11), (2, 2), "core", ceil_mode=True),
    _max("stride_3", 3, (10, 13), (2, 3), stride=3, padding=(1, 1)),
    _max("stride_3_channels_17", 17, (9, 40), (2, 3), stride=3),
    _max("small_planes", 19, (8, 10), (2, 2), batch=2),
    _max("stride_larger_than_window", 2, (11, 13), (2, 2), stride=4),
    _max("stride_per_dimension", 2, (9, 11), (3, 3), stride=(1, 3), padding=(1, 0)),
    _max("dilation_2", 3, (9, 11), (3, 3), "core", stride=1, padding=2, dilation=2),
    _max("dilation_3_stride_2", 3, (13, 15), (3, 3), "core", stride=2, padding=3, dilation=3),
    _max("dilation_per_dimension", 3, (13, 12), (2, 3), stride=(3, 2), padding=(1, 0), dilation=(4, 3)),
    _max("ceil_last_window_partly_outside", 2, (7, 8), (3, 3), stride=2, ceil_mode=True),
    _max("ceil_drops_window_in_padding", 2, (6, 6), (2, 2), stride=3, padding=1, ceil_mode=True),
    _max("ceil_dilated", 2, (10, 12), (3, 3), "core", stride=3, padding=1, dilation=2, ceil_mode=True),
    _max("ceil_stride_7", 2, (9, 9), (2, 2), stride=7, ceil_mode=True),
    _max("same_stride_2", 3, (8, 7), (3, 3), padding="same", stride=2),
    _max("same_lower_stride_2", 3, (8, 7), (3, 2), padding="same_lower", stride=2),
    _max("per_side", 3, (7, 8), (3, 4), "core", stride=2, padding=((2, 0), (1, 3))),
    _max("per_side_dilated", 3, (7, 8), (3, 3), stride=1, padding=((4, 1), (0, 3)), dilation=2),
    _max("window_1x1", 3, (5, 6), (1, 1)),
    _max("window_1x1_strided", 3, (5, 6), (1, 1), stride=2),
    _max("window_as_large_as_input", 3, (5, 6), (5, 6)),
    _max("window_larger_than_input", 3, (3, 4), (5, 6), padding=(2, 3), stride=1),
    _max("window_1xn", 3, (4, 20), (1, 9), stride=1, padding=(0, 4)),
    _max("window_nx1", 3, (20, 4), (9, 1), stride=1, padding=(4, 0)),
    _max("window_13", 2, (20, 20), (13, 13), "core", stride=1, padding=6),
    _max("window_256_places", 2, (18, 19), (16, 16), "core", stride=1),
    _max("window_257_places", 2, (3, 270), (1, 257), stride=2),
    _max("window_289_places", 2, (20, 21), (17, 17), "core", stride=2, padding=8),
    _max("window_289_places_channels_17", 17, (18, 19), (17, 17), stride=1, padding=1),
    *(_max(f"streamed_{n}_channels", n, (4, 9), (4, 4), stride=(2, 4), padding=(1, 0)) for n in (1024, 1025)),
    _max("streamed_dilated", 345, (9, 8), (7, 7), stride=4, padding=(5, 3), dilation=2),
    _max("one_place", 3, (1, 1), (1, 1), batch=2),
    _max("padding_around_one_place", 3, (1, 1), (3, 3), padding=1, stride=1),
    _max("pool1d", 3, (23,), (3,), "core", stride=2, padding=1, batch=2),
    _max("pool1d_dilated_ceil", 3, (33,), (4,), stride=3, padding=2, dilation=2, ceil_mode=True),
    _max("pool1d_window_300", 2, (310,), (300,), stride=3, padding=149),
    _max("pool3d", 3, (6, 7, 9), (2, 3, 3), "core", stride=2, padding=1, batch=2),
    _max("pool3d_halves", 17, (4, 4, 6), (2, 2, 2)),
    _max(
        "pool3d_dilated_ceil",
        2,
        (7, 8, 9),
        (2, 3, 2),
        stride=(2, 3, 2),
        padding=(1, 1, 0),
        dilation=(2, 1, 3),
        ceil_mode=True,
    ),
    _max("pool3d_window_343", 1, (8, 9, 9), (7, 7, 7), stride=2, padding=((3, 0), (3, 3), (1, 2))),
    _max("pool3d_width_33", 2, (3, 3, 33), (2, 2, 3), stride=1, padding=(0, 0, 1)),
)

ADAPTIVE_WINDOWS = tuple(
    _max(f"adaptive_{name}", channels, size, output, *tags, adaptive=True, batch=batch)
    for name, channels, size, output, batch, *tags in (
        ("7_to_5", 5, (7, 7), (5, 5), 2, "core"),
        ("one_for_all", 17, (5, 6), (1, 1), 1),
        ("one_for_all_of_a_line", 3, (5000,), (1,), 1),
        ("same_size", 3, (4, 5), (4, 5), 1),
        ("divides", 3, (6, 8), (3, 2), 1),
        ("divides_one_dimension", 3, (6, 7), (3, 2), 1),
        ("more_than_there_are", 9, (3, 4), (5, 7), 1, "core"),
        ("of_one_place", 3, (1, 1), (2, 3), 1),
        ("wide_windows", 2, (9, 100), (2, 3), 1),
        ("windows_of_16", 2, (5, 33), (3, 2), 1),
        ("289_places", 2, (50, 33), (3, 2), 1),
        ("rows_together", 17, (10, 60), (2, 6), 2),
        ("windows_of_15_and_16", 3, (6, 92), (2, 6), 1),
        ("wider_than_a_row", 1, (3, 9000), (2, 2), 1),
        ("many_columns", 1, (2, 1300), (2, 1100), 1),
        ("many_of_few", 1, (3, 2), (2, 1100), 1),
        ("channels_33", 33, (5, 4), (3, 3), 2),
        ("channels_67", 67, (9, 8), (4, 3), 1),
        ("streamed", 330, (14, 15), (2, 2), 1),
        ("planes_as_lanes_in_pieces", 17, (5, 700), (3, 301), 1),
        ("planes_as_lanes_of_many_rows", 17, (40, 9), (3, 4), 1),
        ("line", 3, (23,), (7,), 2, "core"),
        ("volume", 3, (5, 6, 7), (2, 4, 3), 2, "core"),
        ("volume_of_17_channels", 17, (3, 4, 5), (2, 3, 3), 1),
        # Around the lanes of a vector: planes, rows where planes are few, and columns; eight vectors of these and more.
        *((f"planes_{n}", n, (9, 7), (4, 5), 1) for n in (7, 8, 9, 15, 16)),
        *((f"rows_{n}", 1, (20, 5), (n, 3), 2) for n in (7, 8, 9, 17)),
        *((f"columns_{n}", 5, (4, n), (2, 6), 2) for n in (8, 9, 15, 16, 17, 33, 57, 65, 129, 145)),
        *((f"windows_of_{n}_at_most", 9, (3, 4 * n - 1), (2, 4), 1) for n in (24, 25, 40)),
        ("rows_in_pieces", 2, (4, 1100), (3, 90), 1),
        ("rows_alike_in_pieces", 9, (4, 265), (2, 20), 1),
        ("line_of_lanes", 17, (530,), (53,), 1),
        ("volume_of_planes", 9, (5, 7, 9), (2, 4, 4), 1),
    )
)

MAX_POOLS = POOL_WINDOWS + ADAPTIVE_WINDOWS
AVERAGE_POOLS = (
    *(p.with_(average=True) for p in MAX_POOLS),
    *(
        p.with_(average=True, name=f"{p.name}_inside_only", count_include_pad=False)
        for p in POOL_WINDOWS
        if p.padding != 0
    ),
    *(p.with_(average=True, name=f"{p.name}_divisor_7", divisor_override=7) for p in POOL_WINDOWS if "core" in p.tags),
    PoolProblem("divisor_negative", True, 2, (5, 6), (2, 2), divisor_override=-3),
)
POOLS = MAX_POOLS + AVERAGE_POOLS
MAX_CORE = tuple(p for p in MAX_POOLS if "core" in p.tags)
AVERAGE_CORE = tuple(p for p in AVERAGE_POOLS if "core" in p.tags)


# Random geometry -----------------------------------------------------------------------------------------------------

_LARGEST_EXTRA = (40, 14, 7)  # places beyond what one window needs, for 1, 2, 3 dimensions
_LARGEST_KERNEL = (7, 5, 3)


@st.composite
def conv_problems(draw: st.DrawFn, torch_padding: bool = False) -> ConvProblem:
    """Any convolution that fits. torch_padding: only padding that torch.nn.functional takes (zeros, both sides)."""
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 5)))
    inputs, outputs = (groups * draw(st.integers(1, 9 if groups == 1 else 3)) for _ in range(2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    kernel = tuple(draw(st.integers(1, _LARGEST_KERNEL[spatial - 1])) for _ in range(spatial))
    mode = "zeros" if torch_padding else draw(st.sampled_from(PADDING_MODES))
    sizes, pads = [], []
    for k, d in zip(kernel, dilation, strict=True):
        before = draw(st.integers(0, k + 2))
        after = before if torch_padding else draw(st.integers(0, k + 2))
        shown = max(before, after)
        least = {"zeros": 1, "replicate": 1, "reflect": shown + 1}.get(mode, shown)
        least = max(1, least, d * (k - 1) + 1 - before - after)
        sizes.append(least + draw(st.integers(0, _LARGEST_EXTRA[spatial - 1])))
        pads.append((before, after))
    return ConvProblem(
        "random",
        (inputs, outputs),
        tuple(sizes),
        kernel,
        batch=draw(st.integers(1, 3)),
        stride=stride,
        padding=tuple(before for before, _ in pads) if torch_padding else tuple(pads),
        dilation=dilation,
        groups=groups,
        padding_mode=mode,
        flip_kernel=False if torch_padding else draw(st.booleans()),
        bias=draw(st.booleans()),
    )


@st.composite
def pool_problems(draw: st.DrawFn, average: bool, torch_padding: bool = False) -> PoolProblem:
    """Any pooling that fits. torch_padding: only what torch.nn.functional takes (both sides; no dilated average)."""
    spatial = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, _LARGEST_KERNEL[spatial - 1])) for _ in range(spatial))
    stride = tuple(draw(st.integers(1, 4)) for _ in range(spatial))
    plain = torch_padding and average
    dilation = tuple(1 if plain else draw(st.integers(1, 3)) for _ in range(spatial))
    sizes, pads = [], []
    for k, d in zip(kernel, dilation, strict=True):
        reach = d * (k - 1) + 1
        before = draw(st.integers(0, reach // 2 if torch_padding else reach - 1))
        after = before if torch_padding else draw(st.integers(0, reach - 1))
        if before == after:
            before = after = min(before, (k if torch_padding else reach) // 2)
        sizes.append(max(1, reach - before - after) + draw(st.integers(0, _LARGEST_EXTRA[spatial - 1])))
        pads.append((before, after))
    return PoolProblem(
        "random",
        average,
        draw(st.integers(1, 9)),
        tuple(sizes),
        kernel,
        batch=draw(st.integers(1, 3)),
        stride=stride,
        padding=tuple(before for before, _ in pads) if torch_padding else tuple(pads),
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
        count_include_pad=draw(st.booleans()),
        divisor_override=draw(st.sampled_from((None, None, 3, -2))) if average and spatial > 1 else None,
    )
