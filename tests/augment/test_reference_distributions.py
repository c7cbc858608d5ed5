"""The draws of each transform against torchvision's, in distribution. All seeds are fixed, so no test is ever lucky."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from fastcifar.augment import reference
from fastcifar.augment.philox import ERASING_ATTEMPTS, Stream, below, uniform
from fastcifar.augment.policy import (
    ColorJitter,
    Policy,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomRotation,
    Translate,
)

COUNT = 6000
P_VALUE = 1e-3


@pytest.fixture(autouse=True)
def torchvisions_draws():
    """torchvision draws from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def draws(transform):
    return reference.Draws(1, 0, torch.arange(COUNT), Policy((transform,)).streams())


SHAPE = (3, 32, 32)


def drawn(transform):
    """The parameters that the reference draws."""
    _, *parameters = reference.DRAW[type(transform)](transform, draws(transform), SHAPE)
    return parameters


def applied(transform, images):
    apply, *parameters = reference.DRAW[type(transform)](transform, draws(transform), tuple(images.shape[1:]))
    return apply(images, *parameters)


@pytest.mark.parametrize("transform", [RandomCrop(32, padding=4), Translate(4)])
def test_crop_offsets_are_uniform(transform):
    top, left = drawn(transform)
    table = torch.bincount(top * 9 + left, minlength=81)
    assert len(table) == 81
    assert stats.chisquare(table.numpy()).pvalue > P_VALUE


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_flips_happen_with_probability_p(p):
    (flipped,) = drawn(RandomHorizontalFlip(p))
    assert stats.binomtest(int(flipped.sum()), COUNT, p).pvalue > P_VALUE


def test_jitter_factors_are_uniform_in_their_bounds_and_the_order_is_any_of_six():
    factors, order = drawn(ColorJitter(0.2, (0.5, 0.8), 1.5))
    for column, (low, high) in enumerate([(0.8, 1.2), (0.5, 0.8), (0.0, 2.5)]):
        assert stats.kstest(factors[:, column].numpy(), "uniform", (low, high - low)).pvalue > P_VALUE
    counts = torch.bincount(order, minlength=6)
    assert len(counts) == 6
    assert stats.chisquare(counts.numpy()).pvalue > P_VALUE


def test_jittered_images_have_torchvisions_distribution():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    ours = applied(ColorJitter(0.4, 0.4, 0.4), image.expand(COUNT, -1, -1, -1))
    jitter = v2.ColorJitter(0.4, 0.4, 0.4)
    theirs = torch.stack([jitter(reference.to_float(image)) for _ in range(2000)])
    for statistic in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3)), lambda x: x[:, 0, 3, 3] - x[:, 2, 3, 3]):
        assert stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > P_VALUE


def test_angles_are_uniform():
    (turns,) = drawn(RandomRotation(15))
    angles = torch.rad2deg(torch.asin(turns[:, 3].double() / 2**reference.FIXED_POINT))
    assert stats.kstest(angles.numpy(), "uniform", (-15, 30)).pvalue > P_VALUE


def erasing_boxes(transform, size):
    words = draws(transform).words(Stream.ERASING_ATTEMPT, ERASING_ATTEMPTS)
    return reference.erasing_boxes(words, transform.scale, transform.ratio, size)


@pytest.mark.parametrize(
    ("scale", "ratio", "size"),
    [((0.02, 0.2), (0.3, 3.3), (32, 32)), ((0.02, 0.33), (0.3, 3.3), (16, 40)), ((0.6, 1.0), (0.2, 5.0), (32, 32))],
)
def test_boxes_have_torchvisions_distribution(scale, ratio, size):
    """Area, aspect ratio and place of the boxes; in the last case many attempts fail."""
    transform = RandomErasing(1.0, scale, ratio)
    ours = erasing_boxes(transform, size)
    ours = ours[ours[:, 2] > 0].double()
    module, image, theirs = v2.RandomErasing(1.0, scale, ratio), torch.zeros(3, *size), []
    for _ in range(COUNT):
        drawn = module.make_params([image])
        if drawn["v"] is not None:
            theirs.append([drawn["i"], drawn["j"], drawn["h"], drawn["w"]])
    theirs = torch.tensor(theirs, dtype=torch.float64)
    for statistic in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0] / (size[0] - b[:, 2]),
        lambda b: b[:, 1] / (size[1] - b[:, 3]),
    ):
        assert stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > P_VALUE


def test_ten_attempts_and_no_more_are_made():
    """Where one attempt in f fits, (1 - f)**10 of the images stay whole, for us as for torchvision."""
    transform = RandomErasing(1.0, (0.9, 1.0), (0.1, 10.0))
    ours = erasing_boxes(transform, (32, 32))
    module, image = v2.RandomErasing(1.0, transform.scale, transform.ratio), torch.zeros(3, 32, 32)
    theirs = sum(module.make_params([image])["v"] is None for _ in range(COUNT))
    missed = int((ours[:, 2] == 0).sum())
    assert 0.05 * COUNT < missed < 0.95 * COUNT
    table = [[missed, COUNT - missed], [theirs, COUNT - theirs]]
    assert stats.chi2_contingency(table).pvalue > P_VALUE
    assert torch.equal(ours[ours[:, 2] == 0], torch.zeros(missed, 4, dtype=torch.int64))


def test_erasing_happens_with_probability_p_independently_of_the_box():
    transform = RandomErasing(0.3, (0.02, 0.2), value=9.0)
    erased = (applied(transform, torch.zeros(COUNT, *SHAPE)) == 9).flatten(1).any(1)
    assert stats.binomtest(int(erased.sum()), COUNT, 0.3).pvalue > P_VALUE


def test_noise_is_standard_normal_and_differs_between_pixels_channels_and_samples():
    transform = RandomErasing(1.0, value="random")
    noise = reference.erasing_noise(draws(transform), torch.Size((COUNT, 3, 4, 5)))
    assert stats.kstest(noise[:2000].flatten().numpy(), "norm").pvalue > P_VALUE
    columns = noise.flatten(1)
    correlation = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
    assert correlation.abs().max() < 5 / COUNT**0.5
    many = reference.erasing_noise(draws(transform), torch.Size((COUNT, 6, 1, 1)))
    assert torch.corrcoef(many.flatten(1).T).triu(1).abs().max() < 5 / COUNT**0.5


def test_words_of_different_streams_are_independent():
    table = draws(RandomErasing())
    first, second = uniform(table.words(Stream.ERASING)[0]), below(table.words(Stream.ERASING_ATTEMPT)[0], 1000)
    assert abs(torch.corrcoef(torch.stack([first, second.float()]))[0, 1]) < 5 / COUNT**0.5
