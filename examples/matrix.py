"""A convolution as a matrix, and back: python -m examples.matrix

Lay all pixels of a picture in one column. Every output is a weighted sum of them, so a convolution is a matrix with a
row per output: mostly zeros, and the same nine numbers in every row, further along. Its transpose leads back to where
the pixels were: that is the transposed convolution, and the gradient. It is not the inverse.

An inverse there is only if nothing was lost. On a ring (circular padding) the matrix is square, and its eigenvalues are
the Fourier transform of the kernel: where that is zero, a wave of that length vanishes, and no way leads back. The
smooth kernel (1, 2, 1) both ways swallows stripes one pixel wide. One that keeps every wave can be undone.

From the matrix back to the kernel is easy: it stands in the first row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convext.analysis import convolution_matrix
from convext.functional import conv2d, conv_transpose2d
from examples import pictures

SMOOTH = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).double().view(1, 1, 3, 3)
MILD = torch.tensor([[0.0, 1.0, 0.0], [1.0, 5.0, 1.0], [0.0, 1.0, 0.0]]).double().view(1, 1, 3, 3)
"""Its Fourier transform, 5 + 2 cos a + 2 cos b, is 1 at the least."""


@dataclass(frozen=True)
class Matrices:
    matrix: Tensor
    """(36, 64), dense: of SMOOTH on a digit of 8x8, without padding."""
    by_matrix: Tensor
    by_convolution: Tensor
    back_by_matrix: Tensor
    """The transpose, applied to the outputs; ``back_by_convolution``: the transposed convolution."""
    back_by_convolution: Tensor
    kernel: Tensor
    """Read off the first row."""
    ranks: dict[str, int]
    """Of the two kernels' matrices on a ring of 8x8."""
    eigenvalues: Tensor
    spectrum: Tensor
    """Of MILD: the matrix's eigenvalues, the kernel's Fourier transform; both in ascending order."""
    digit: Tensor
    restored: Tensor
    """From MILD's answer on a ring."""


def main(folder: Path | None = None) -> Matrices:
    digit = pictures.digits()[0][:1]
    size = tuple(digit.shape[2:])
    sparse = convolution_matrix(SMOOTH, size)
    matrix = sparse.to_dense()
    places = size[0] * size[1]
    by_matrix, by_convolution = matrix @ digit.flatten(), conv2d(digit, SMOOTH)
    back_by_matrix, back = matrix.T @ by_matrix, conv_transpose2d(by_convolution, SMOOTH)
    print(f"A 3x3 kernel on {size[0]} x {size[1]} pixels is a matrix of {matrix.shape[0]} x {matrix.shape[1]}, with")
    print(f"  {int((matrix != 0).sum())} numbers other than zero, of which nine are different at most.")
    print(f"Matrix and convolution agree: {torch.equal(by_matrix, by_convolution.flatten())};")
    print(f"  transpose and transposed convolution, too: {torch.equal(back_by_matrix, back.flatten())}.")
    kernel = matrix[0].view(size)[:3, :3]
    print(f"The first row holds the kernel: {kernel.int().tolist()}.")

    rings = {
        name: convolution_matrix(weight, size, padding=1, padding_mode="circular").to_dense()
        for name, weight in (("smooth", SMOOTH), ("mild", MILD))
    }
    ranks = {name: int(torch.linalg.matrix_rank(ring)) for name, ring in rings.items()}
    print(
        f"On a ring, the smooth kernel's matrix has rank {ranks['smooth']} of {places}, the mild one's {ranks['mild']}."
    )
    eigenvalues = torch.linalg.eigvalsh(rings["mild"])
    around = torch.nn.functional.pad(MILD[0, 0], [0, size[1] - 3, 0, size[0] - 3]).roll((-1, -1), (0, 1))
    spectrum = torch.fft.fft2(around).real.flatten().sort().values
    error = (eigenvalues - spectrum).abs().max()
    print(
        f"Eigenvalues and Fourier transform differ by {error:.0e}; from {eigenvalues[0]:.0f} to {eigenvalues[-1]:.0f}."
    )
    answer = conv2d(digit, MILD, padding=1, padding_mode="circular")
    restored = torch.linalg.solve(rings["mild"], answer.flatten()).view_as(digit)
    print(f"So the digit can be had back from the mild answer, to {(restored - digit).abs().max():.0e} of 16.")
    if folder is not None:
        shown = {"the matrix": matrix, "its transpose times itself": matrix.T @ matrix}
        pictures.save(shown, folder / "matrix.png")
    return Matrices(
        matrix, by_matrix, by_convolution, back_by_matrix, back, kernel, ranks, eigenvalues, spectrum, digit, restored
    )


if __name__ == "__main__":
    main(pictures.OUTPUTS)
