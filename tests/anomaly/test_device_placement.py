"""No tensor of a detector is left on the CPU when another device computes; it is "meta", which refuses to mix."""

import torch

from anomaly import deep_geo, deep_if, piad
from tests.anomaly import squares

META = torch.device("meta")


def test_piads_step_stays_on_the_device(tmp_path):
    flags = ("--vgg", "vgg16", "--vgg_weights", "random", "--layer", "r12", "--latent_dim", "3", "--dims", "4")
    learner = piad.Learner(squares.parse("piad", 16, tmp_path, *flags), 1, META)
    sums = piad.step(learner, torch.rand(4, 1, 16, 16, device=META), look=False)
    parameters = [p for network in learner.networks.values() for p in network.parameters()]
    assert {t.device for t in (sums, *parameters, *(p.grad for p in parameters))} == {META}


def test_deep_geo_trains_and_scores_on_the_device():
    model = deep_geo.DeepGeo(1, 32, 4, depth=10, widen=1).to(META)
    optimizer, scaler = torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    tiles, transforms = torch.rand(4, 1, 32, 32, device=META), torch.zeros(4, dtype=torch.int64, device=META)
    sums = deep_geo.step(model, optimizer, scaler, tiles, transforms, "float32")
    assert {sums.device, model.eval().anomaly_scores(tiles).device} == {META}


def test_a_forest_scores_on_the_device():
    assert deep_if.Forest().to(META)(torch.rand(3, 5, device=META)).device == META
