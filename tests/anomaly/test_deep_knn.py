import torch

from anomaly import deep_knn, runs
from tests.anomaly import squares

CPU = torch.device("cpu")
FLAGS = ("--embedder_weights", "random", "--layer", "r12", "--k", "3")


def fit(logdir, *flags, n=40):
    args = squares.parse("deep_knn", 24, logdir, *FLAGS, *flags)
    deep_knn.fit(squares.normal_squares(n, args), None, args, CPU)
    return deep_knn.load(*runs.read_run(logdir), CPU)


def test_a_score_is_the_mean_distance_to_the_nearest_training_tiles(tmp_path):
    detector = fit(tmp_path)
    tiles = torch.rand(5, 1, 24, 24)
    features = torch.nn.functional.normalize(detector.embedder(tiles))
    wanted = torch.cdist(features, detector.gallery.features).topk(3, largest=False)[0].mean(1)
    torch.testing.assert_close(deep_knn.score(detector, tiles)[0], wanted, rtol=1e-4, atol=1e-5)


def test_every_training_image_is_in_the_gallery(tmp_path):
    detector = fit(tmp_path, "-b", "7", "--k", "1")
    args = squares.parse("deep_knn", 24, tmp_path, *FLAGS)
    normals = squares.normal_squares(40, args)
    tiles = torch.stack([normals[n][0] for n in range(20)])
    assert len(detector.gallery.features) == 20
    assert deep_knn.score(detector, tiles)[0].max() < 1e-3


def test_a_square_in_noise_is_found(tmp_path):
    assert squares.squares_apart(deep_knn, fit(tmp_path)) > 0.9
