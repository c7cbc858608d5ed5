"""RandomErasing: against torchvision, in distribution, and the kernel against the reference."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from scipy import stats
from torchvision.transforms import v2

from fastcifar.augment import Policy, RandomErasing, batch
from fastcifar.augment.philox import below, uniform
from fastcifar.augment.transforms.base import to_float
from fastcifar.augment.transforms.erasing import ATTEMPTS, erase, erasing_boxes, erasing_noise

COUNT = 6000


@pytest.fixture
def make_boxes(make_draws):
    """Make the boxes that the reference draws for images of a size."""

    def make(transform, size):
        words = make_draws(transform).words(transform.streams[1], ATTEMPTS)
        return erasing_boxes(words, transform.scale, transform.ratio, size)

    return make


@pytest.mark.parametrize("value", [0.0, 0.7, [0.1, 0.2, 0.3]])
def test_erase_equals_torchvision(make_images, generator, each, value):
    images = to_float(make_images((7, 12)))
    boxes = torch.stack([torch.randint(0, high, (len(images),), generator=generator) for high in (7, 12, 7, 12)], dim=1)
    boxes[0] = 0
    fill = torch.tensor(value).view(-1, 1, 1)
    expected = each(images, lambda image, box: TF.erase(image, *box, fill), boxes.tolist())
    assert torch.equal(erase(images.clone(), boxes, fill), expected)


def test_boxes_partly_outside_are_clipped_and_empty_ones_erase_nothing():
    boxes = torch.tensor([[-1, 3, 3, 9], [0, 0, 0, 5], [2, 2, 4, 0]])
    erased = erase(torch.zeros(3, 1, 5, 6), boxes, torch.ones(()))
    expected = torch.zeros(3, 1, 5, 6)
    expected[0, :, :2, 3:] = 1
    assert torch.equal(erased, expected)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_erasures(make_images, augmented, p):
    erased = augmented(make_images(), RandomErasing(p, value=7.0))
    assert ((erased == 7).flatten(1).any(1) == bool(p)).all()


@pytest.mark.parametrize(
    ("scale", "ratio", "size"),
    [((0.02, 0.2), (0.3, 3.3), (32, 32)), ((0.02, 0.33), (0.3, 3.3), (16, 40)), ((0.6, 1.0), (0.2, 5.0), (32, 32))],
)
def test_boxes_have_torchvisions_distribution(make_boxes, torchvisions_draws, scale, ratio, size):
    """Area, aspect ratio and position of the boxes; in the last case many attempts fail."""
    ours = make_boxes(RandomErasing(1.0, scale, ratio), size)
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
        assert stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 1e-3


def test_ten_attempts_and_no_more_are_made(make_boxes, torchvisions_draws):
    """If a share f of the attempts fits, (1 - f)**10 of the images stay unchanged, with ours and with torchvision."""
    transform = RandomErasing(1.0, (0.9, 1.0), (0.1, 10.0))
    ours = make_boxes(transform, (32, 32))
    module, image = v2.RandomErasing(1.0, transform.scale, transform.ratio), torch.zeros(3, 32, 32)
    theirs = sum(module.make_params([image])["v"] is None for _ in range(COUNT))
    missed = int((ours[:, 2] == 0).sum())
    assert 0.05 * COUNT < missed < 0.95 * COUNT
    table = [[missed, COUNT - missed], [theirs, COUNT - theirs]]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    assert torch.equal(ours[ours[:, 2] == 0], torch.zeros(missed, 4, dtype=torch.int64))


def test_erasing_happens_with_probability_p_independently_of_the_box(applied):
    erased = (applied(RandomErasing(0.3, (0.02, 0.2), value=9.0), torch.zeros(COUNT, 3, 32, 32)) == 9).flatten(1).any(1)
    assert stats.binomtest(int(erased.sum()), COUNT, 0.3).pvalue > 1e-3


def test_noise_is_standard_normal_and_differs_between_pixels_channels_and_samples(make_draws):
    draws = make_draws(RandomErasing(1.0, value="random"))
    noise = erasing_noise(draws, torch.Size((COUNT, 3, 4, 5)))
    assert stats.kstest(noise[:2000].flatten().numpy(), "norm").pvalue > 1e-3
    columns = noise.flatten(1)
    correlation = torch.corrcoef(columns.T) - torch.eye(columns.shape[1])
    assert correlation.abs().max() < 5 / COUNT**0.5
    many = erasing_noise(draws, torch.Size((COUNT, 6, 1, 1)))
    assert torch.corrcoef(many.flatten(1).T).triu(1).abs().max() < 5 / COUNT**0.5


def test_words_of_different_streams_are_independent(make_draws):
    whether, attempt = (make_draws(RandomErasing()).words(stream)[0] for stream in RandomErasing.streams[:2])
    first, second = uniform(whether), below(attempt, 1000)
    assert abs(torch.corrcoef(torch.stack([first, second.float()]))[0, 1]) < 5 / COUNT**0.5


@pytest.mark.parametrize(
    "transform", [RandomErasing(0.7, value=(1.5, 2.5, 3.5)), RandomErasing(1.0, value="random")], ids=["values", "noise"]
)
def test_the_kernel_equals_the_reference(check_kernel, transform):
    check_kernel(transform)


def test_the_kernels_rectangles_are_those_of_the_reference_to_the_pixel(device, make_data):
    from fastcifar.augment import fused

    policy = Policy((RandomErasing(0.9, scale=(0.02, 0.6), ratio=(0.1, 10), value=2.0),))
    arguments = [*make_data(200, 16, 24, 1), torch.tensor([1, 2, 0], device=device)]
    ours, theirs = (
        function(*arguments, batch_size=200, policy=policy, num_classes=10)[0] == 2.0
        for function in (fused.load_batch, batch.load_batch)
    )
    assert torch.equal(ours, theirs)
    assert 0.1 < ours.float().mean() < 0.4
