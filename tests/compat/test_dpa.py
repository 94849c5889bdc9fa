"""DPA's command lines and YAML files do what the project's own commands do, or say why not."""

import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from skimage.io import imsave

import score_anomaly
import train_anomaly
from common.errors import BadInput
from compat.dpa import translation
from compat.dpa.section import read

HERE = Path(translation.__file__).parent
EXAMPLES = [
    *(("dpa", f"{action}_{kind}_example") for kind in ("wo_pg", "pg") for action in ("train", "eval")),
    *(
        (method, f"{action}_example")
        for method in ("piad", "deep_geo")
        for action in ("train", "eval", "train_eval")[:2]
    ),
    ("deep_if", "train_eval_example"),
]
DATA = {"normal": ("train", "val", "test"), "anomaly": ("test",)}


def example(method, name):
    return yaml.safe_load((HERE / "configs" / method / f"{name}.yaml").read_text())


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Pictures of noise, anomalies with a bright square, and their lists."""
    root, rng = tmp_path_factory.mktemp("patches"), np.random.default_rng(0)
    (root / "x10").mkdir()
    for kind, splits in DATA.items():
        (root / "splits" / kind).mkdir(parents=True)
        for split in splits:
            names = [f"{kind}_{split}_{i}.png" for i in range(8)]
            for name in names:
                picture = rng.integers(0, 80, (40, 40, 3)).astype(np.uint8)
                if kind == "anomaly":
                    picture[10:30, 10:30] = 255
                imsave(root / "x10" / name, picture, check_contrast=False)
            (root / "splits" / kind / split).write_text("\n".join(names) + "\n")
    return root


def dataset(patches, kind, split, side=16, **transform):
    kwargs = {"image_root": f"{patches}/x10", "split_root": f"{patches}/splits/{kind}", "split": split}
    return {
        "dataset_type": "camelyon16",
        "dataset_kwargs": kwargs,
        "transform_kwargs": {"crop_size": side, **transform},
    }


def small_dpa(patches, runs):
    """DPA's example at a size of seconds, on patches."""
    config = example("dpa", "train_pg_example")
    layers = {"img_weight": 0, "feature_weights": {"r12": 1}}
    config |= {"checkpoint_root": f"{runs}/dpa", "max_image_res": 16, "initial_image_res": 8}
    config |= {"iters_per_res": None, "trns_iter": 2, "stab_iter": 2, "batch_sizes": {8: 4, 16: 4}}
    config["image_rec_loss"]["loss_kwargs"]["weights_per_resolution"] = {8: layers, 16: layers}
    config["train_dataset"] = dataset(patches, "normal", "train", random_crop=True, random_flip=True)
    config["val_dataset"] = dataset(patches, "normal", "val")
    return config


def evaluation(patches, runs, method, key="test_model_path", side=16):
    both = {"normal": dataset(patches, "normal", "test", side), "anomaly": dataset(patches, "anomaly", "test", side)}
    return {
        "results_root": f"{runs}/results",
        key: f"{runs}/{method}/anomaly_detection.tar",
        "test_batch_size": 4,
        "test_datasets": both,
    }


def write(path, config):
    path.write_text(yaml.safe_dump(config))
    return str(path)


def results(runs):
    with (runs / "results" / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("method", "name"), EXAMPLES)
def test_an_example_asks_for_flags_that_there_are(method, name):
    config = HERE / "configs" / method / f"{name}.yaml"
    if "train" in name:
        args = train_anomaly.parse_args(translation.training_words(method, read(config)))
        assert args.method == method
    if "eval" in name:
        words, _ = translation.evaluation_words(method, read(config))
        args = score_anomaly.parse_args(words)
        assert args.logdir == Path(f"runs/{method}") / name.removeprefix("train_").removeprefix("eval_")


@pytest.mark.parametrize(
    ("name", "setting"), [("train_wo_pg_example", "cifar10_class0"), ("train_pg_example", "camelyon16_pg")]
)
def test_dpas_examples_are_its_settings(name, setting):
    words = translation.training_words("dpa", read(HERE / "configs" / "dpa" / f"{name}.yaml"))
    found = vars(train_anomaly.parse_args(words))
    expected = vars(train_anomaly.parse_args([*words[:4], "--root", "x", "--setting", setting]))
    for flag in (
        "tile",
        "latent_res",
        "latent_dim",
        "lr",
        "progressive",
        "crop",
        "random_crop",
        "flip",
        "network",
        "loss",
    ):
        assert found[flag] == expected[flag], flag
    assert set(found["dims"]) == set(expected["dims"])
    chosen = ("initial_res", "stage_iters", "layers") if found["progressive"] else ("iters", "layer")
    assert {flag: found[flag] for flag in chosen} == {flag: expected[flag] for flag in chosen}


@pytest.mark.slow
def test_the_line_of_dpas_readme_trains_and_evaluates_and_given_again_does_nothing(patches, tmp_path, capsys):
    config = write(tmp_path / "train.yaml", small_dpa(patches, tmp_path))
    test = write(tmp_path / "eval.yaml", evaluation(patches, tmp_path, "dpa"))
    words = [sys.executable, "anomaly_detection/dpa/main.py", "train_eval", config, test]
    words += ["--vgg_weights", "random", "--workers", "0"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--device cuda: cannot be used") == 1 and "going on with --device auto" in done.stdout
    assert "$ python train_anomaly.py --method dpa " in done.stdout
    assert results(tmp_path)[0]["seed"] == "1"
    assert float(results(tmp_path)[0]["ROC AUC"]) > 0.9
    translation.main("dpa", [*words[2:], "--device", "cpu"])
    assert "complete after epoch 3" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("val_iter", "rows"), [(None, 1000), (300, 300), (10**6, 5000)])
def test_piads_val_iter_is_the_iterations_between_two_rows(tmp_path, val_iter, rows):
    """Where it is above all iterations, as in final configs, there is one row."""
    config = example("piad", "train_example") | {"iters": 5000, "val_iter": val_iter}
    words = translation.training_words("piad", read(Path(write(tmp_path / "train.yaml", config))))
    assert train_anomaly.parse_args(words).val_iter == rows


def test_piad_trains_and_evaluates(patches, tmp_path):
    config = example("piad", "train_example")
    config |= {"checkpoint_root": f"{tmp_path}/piad", "image_res": 16, "latent_dim": 3, "iters": 2, "batch_size": 4}
    config["enc"]["kwargs"]["inner_dims"], config["dec"]["kwargs"]["inner_dims"] = [4, 4, 8], [8, 4, 4]
    config["image_rec_loss"]["loss_kwargs"]["feature_weights"] = {"r12": 1}
    config["train_dataset"] = dataset(patches, "normal", "train")
    words = [
        write(tmp_path / "train.yaml", config),
        write(tmp_path / "eval.yaml", evaluation(patches, tmp_path, "piad")),
    ]
    translation.main("piad", ["train_eval", *words, "--vgg", "vgg16", "--vgg_weights", "random", "--workers", "0"])
    assert 0 <= float(results(tmp_path)[0]["ROC AUC"]) <= 1


@pytest.mark.slow
def test_deep_geo_trains_and_then_evaluates(patches, tmp_path):
    config = example("deep_geo", "train_example") | {"checkpoint_root": f"{tmp_path}/deep_geo", "epochs": 1}
    config["train_dataset"] = dataset(patches, "normal", "train", side=32)
    test = evaluation(patches, tmp_path, "deep_geo", "test_checkpoint_path", side=32)
    translation.main(
        "deep_geo", ["train", write(tmp_path / "train.yaml", config), "--wrn_widen", "1", "--workers", "0"]
    )
    translation.main("deep_geo", ["eval", write(tmp_path / "eval.yaml", test)])
    assert results(tmp_path)[0]["seed"] == "1"


@pytest.mark.slow
def test_deep_if_has_one_config(patches, tmp_path):
    config = example("deep_if", "train_eval_example") | {"results_root": f"{tmp_path}/results"}
    config["train_dataset"] = dataset(patches, "normal", "train")
    config["test_datasets"] = evaluation(patches, tmp_path, "deep_if")["test_datasets"]
    path = write(tmp_path / "both.yaml", config)
    other = ["--embedder", "vgg16", "--embedder_weights", "random", "--layers", "r12", "--workers", "0"]
    translation.main("deep_if", ["train_eval", path, "--device", "cpu", *other])
    assert float(results(tmp_path)[0]["ROC AUC"]) > 0.9


def change(config, place, value):
    *sections, key = place.split("/")
    for name in sections:
        config = config[int(name) if name.isdigit() else name]
    config[key] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("stab_itre", 3, "stab_itre: unknown key"),
        ("enc/kwargs/inner_dim", [4], r"enc\.kwargs\.inner_dim: unknown key"),
        ("train_dataset/dataset_kwargs/rot", "x", r"train_dataset\.dataset_kwargs\.rot: unknown key"),
        ("checkpoint_root", None, "checkpoint_root: missing"),
        ("enc/type", "regular", r"enc\.type: regular is not offered, expected residual18 or residual9"),
        ("dec/type", "residual9", r"dec\.type: residual9 is not offered, expected residual18"),
        ("dec/kwargs/norm", "bn", r"dec\.kwargs\.norm: bn is not offered"),
        ("enc/kwargs/inner_dims", [4], r"enc\.kwargs\.inner_dims: expected 2 numbers for 16 to 8 px, found \[4\]"),
        ("dec/kwargs/inner_dims", [4, 8], r"dec\.kwargs\.inner_dims: expected the encoder's in reverse"),
        ("batch_sizes", {8: 4, 16: 8}, r"batch_sizes: expected one size .* found \[4, 8\]"),
        ("adam_kwargs/lr", "fast", r"adam_kwargs\.lr: expected a number of 0 or more, found 'fast'"),
        ("n_dis", 2, "n_dis: 2, but there is no image_adv_loss"),
        ("initial_image_res", 5, "initial_image_res: 5 is not max_image_res 16 halved some times"),
        ("trns_iter", 0, "trns_iter: 0, but the network grows"),
        ("image_rec_loss/loss_type", "perceptual", r"image_rec_loss\.loss_type: perceptual is not offered"),
        ("train_dataset/transform_kwargs/crop_size", 32, "transform_kwargs: make images of 32 px, .* network have 16"),
        ("image_dim", 1, r"camelyon16 has colours, but image_dim is 1"),
        ("train_dataset/dataset_type", "mnist", r"dataset_type: mnist is not offered"),
        ("val_dataset/dataset_kwargs/image_root", "/elsewhere", r"image_root: expected that of training"),
        ("enc", [1, 2], r"enc: expected keys and values, found \[1, 2\]"),
    ],
)
def test_a_key_that_is_unknown_or_contradicts_is_named(patches, tmp_path, place, value, message):
    config = small_dpa(patches, tmp_path)
    change(config, place, value)
    with pytest.raises(BadInput, match=rf"train\.yaml: .*{message}"):
        translation.main("dpa", ["train", write(tmp_path / "train.yaml", config)])
    assert not (tmp_path / "dpa").exists()


def test_a_logdir_behind_the_configs_is_scored_too(patches, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(translation, "run", lambda script, words: called.append((script, words)))
    monkeypatch.setattr(translation, "report", lambda results, logdir: called.append(logdir))
    train = write(tmp_path / "train.yaml", small_dpa(patches, tmp_path))
    test = write(tmp_path / "eval.yaml", evaluation(patches, tmp_path, "dpa"))
    translation.main("dpa", ["train_eval", train, test, "--device", "cpu", "--logdir", str(tmp_path / "other")])
    assert [script for script, _ in called[:2]] == ["train_anomaly.py", "score_anomaly.py"]
    assert train_anomaly.parse_args(called[0][1]).logdir == tmp_path / "other" == called[2]
    assert called[1][1][called[1][1].index("--logdir") + 1] == str(tmp_path / "other")


def test_further_flags_of_evaluation_are_refused(patches, tmp_path, capsys):
    test = write(tmp_path / "eval.yaml", evaluation(patches, tmp_path, "dpa"))
    with pytest.raises(SystemExit) as ended:
        translation.main("dpa", ["eval", test, "--overlays", "0"])
    assert ended.value.code == 2 and "eval: has no further flags, found --overlays 0" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["eval", "train_eval"])
def test_images_equalised_in_training_alone_are_refused(patches, tmp_path, action):
    """Else the AUC were of other images than the config asks for."""
    config = small_dpa(patches, tmp_path)
    for part in ("train_dataset", "val_dataset"):
        config[part]["transform_kwargs"]["equalize_hist"] = True
    test = write(tmp_path / "eval.yaml", evaluation(patches, tmp_path, "dpa"))
    if action == "eval":
        (tmp_path / "dpa").mkdir()
        (tmp_path / "dpa" / "config.json").write_text('{"arguments": {"equalize": true}}')
    configs = [test] if action == "eval" else [write(tmp_path / "train.yaml", config), test]
    with pytest.raises(BadInput, match="equalize_hist: false, but the run is trained with true"):
        translation.main("dpa", [action, *configs, "--device", "cpu"])


def test_the_ablations_are_translated(patches, tmp_path):
    config = small_dpa(patches, tmp_path)
    perceptual = config["image_rec_loss"]
    parts = {"loss_1": {"loss_type": "l1", "loss_weight": 0.1}, "loss_2": {**perceptual, "loss_weight": 1}}
    config["image_rec_loss"] = {"loss_type": "compose", "loss_kwargs": parts}
    config["test_image_rec_loss"] = perceptual
    args = train_anomaly.parse_args(translation.training_words("dpa", read(Path(write(tmp_path / "a.yaml", config)))))
    assert (args.l1_weight, args.layers) == (0.1, ("r12", "r12"))
    config["test_image_rec_loss"] = {**perceptual, "loss_kwargs": {"feature_weights": {"r22": 1}}}
    said = r"other\.yaml: test_image_rec_loss\.loss_kwargs: --layer r22 is not offered: the layers of image_rec_loss"
    with pytest.raises(BadInput, match=said):
        translation.training_words("dpa", read(Path(write(tmp_path / "other.yaml", config))))
    config = small_dpa(patches, tmp_path) | {"n_dis": 2, "image_adv_loss": {"loss_type": "wgan_gp"}}
    config |= {
        "loss_weights": {"image_adv_loss": 0.1, "image_rec_loss": 1},
        "ddis": {"type": "residual9", "kwargs": {}},
    }
    args = train_anomaly.parse_args(translation.training_words("dpa", read(Path(write(tmp_path / "b.yaml", config)))))
    assert (args.adv_weight, args.n_dis) == (0.1, 2)


def test_one_file_may_say_how_to_train_and_how_to_evaluate(patches, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(translation, "run", lambda script, words: started.append(script))
    monkeypatch.setattr(translation, "report", lambda results, logdir: started.append(str(results)))
    joined = small_dpa(patches, tmp_path) | evaluation(patches, tmp_path, "dpa")
    path = write(tmp_path / "both.yaml", joined)
    translation.main("dpa", ["train_eval", path, path, "--device", "cpu"])
    assert started == ["train_anomaly.py", "score_anomaly.py", f"{tmp_path}/results"]
    other = write(tmp_path / "unknown.yaml", joined | {"stab_itre": 3})
    with pytest.raises(BadInput, match="stab_itre: unknown key"):
        translation.main("dpa", ["train_eval", other, other])


@pytest.mark.parametrize("method", ["dpa", "piad", "deep_geo"])
def test_a_key_that_is_null_is_as_one_that_is_not_there(method, tmp_path):
    name = "train_pg_example" if method == "dpa" else "train_example"
    plain = translation.training_words(method, read(HERE / "configs" / method / f"{name}.yaml"))
    path = write(tmp_path / "null.yaml", example(method, name) | {"finetune_from": None})
    assert translation.training_words(method, read(Path(path))) == plain


def test_pixels_that_are_learnt_and_not_scored_are_said(patches, tmp_path, capsys):
    config = small_dpa(patches, tmp_path)
    for layers in config["image_rec_loss"]["loss_kwargs"]["weights_per_resolution"].values():
        layers["img_weight"] = 0.1
    words = translation.training_words("dpa", read(Path(write(tmp_path / "a.yaml", config))))
    assert words[words.index("--l1_weight") + 1] == "0.1"
    assert "images are scored by its perceptual part alone" in capsys.readouterr().out


def test_validation_counts_only_where_it_happens(patches, tmp_path):
    config = small_dpa(patches, tmp_path) | {"early_stopping_patience": 5, "early_stopping_min_delta": "1e-3"}
    words = translation.training_words("dpa", read(Path(write(tmp_path / "a.yaml", config | {"val_iter": "1e6"}))))
    assert "--patience" not in words and "--val_list" in words
    words = translation.training_words("dpa", read(Path(write(tmp_path / "b.yaml", config | {"val_iter": 1}))))
    assert [words[words.index(flag) + 1] for flag in ("--patience", "--min_delta", "--val_iter")] == ["5", "0.001", "1"]


def test_more_channels_than_are_used_are_said(patches, tmp_path, capsys):
    config = small_dpa(patches, tmp_path)
    config["enc"]["kwargs"]["inner_dims"] = [9, 9, 9, 4, 4]
    words = translation.training_words("dpa", read(Path(write(tmp_path / "a.yaml", config))))
    assert words[words.index("--dims") + 1] == "4,4"
    assert "enc.kwargs.inner_dims: has 5 numbers, 2 are used, the last" in capsys.readouterr().out


def test_a_list_in_a_folder_called_abnormal_is_found_in_anomaly(patches, tmp_path, capsys):
    config = evaluation(patches, tmp_path, "dpa")
    config["test_datasets"]["anomaly"]["dataset_kwargs"]["split_root"] = f"{patches}/splits/abnormal"
    words, _ = translation.evaluation_words("dpa", read(Path(write(tmp_path / "a.yaml", config))))
    assert words[words.index("--abnormal_list") + 1] == f"{patches}/splits/anomaly/test"
    assert "taking" in capsys.readouterr().out


def cifar10(classes, split="test", **kwargs):
    given = {"root": "cifar", "split": split, "target_classes": classes, **kwargs}
    return {"dataset_type": "cifar10", "dataset_kwargs": given}


def test_anomalies_of_the_training_split_are_not_used_for_the_test(tmp_path, capsys):
    config = example("dpa", "eval_wo_pg_example")
    config["test_datasets"] = {"normal": cifar10([0]), "anomaly": cifar10(list(range(1, 10)), split="train")}
    words, _ = translation.evaluation_words("dpa", read(Path(write(tmp_path / "a.yaml", config))))
    assert words[words.index("--classes") + 1 :] == ["0"]
    assert "split: train: taking test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("anomaly", "message"),
    [
        (cifar10([1, 2]), r"anomaly\.dataset_kwargs\.target_classes: expected all others"),
        (cifar10([11]), "expected a list of classes from 0 to 9"),
        (cifar10([1], target_indexes_path="x.npy"), "target_classes: given beside target_indexes_path"),
        (cifar10(None, "train", target_indexes_path="x.npy"), "expected classes for both"),
        (cifar10(list(range(1, 10)), root="elsewhere"), "root: expected cifar"),
    ],
)
def test_classes_that_contradict_are_named(tmp_path, anomaly, message):
    config = example("dpa", "eval_wo_pg_example")
    config["test_datasets"] = {"normal": cifar10([0]), "anomaly": anomaly}
    with pytest.raises(BadInput, match=message):
        translation.evaluation_words("dpa", read(Path(write(tmp_path / "a.yaml", config))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "not YAML"),
        ("- 1", "expected keys and values"),
        ("", "expected keys"),
        ("!!python/object:os.x {}", "not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(BadInput, match=rf"bad\.yaml: .*{message}"):
        translation.main("dpa", ["train", str(tmp_path / "bad.yaml")])


def test_a_stage_that_is_not_kept_is_named(patches, tmp_path):
    config = evaluation(patches, tmp_path, "dpa") | {"test_model_path": "runs/anomaly_detection_res_16.tar"}
    with pytest.raises(BadInput, match="test_model_path: anomaly_detection_res_16"):
        translation.evaluation_words("dpa", read(Path(write(tmp_path / "a.yaml", config))))


def called(monkeypatch, script, target, *words):
    """The arguments that a script passes on."""
    seen = []
    monkeypatch.setattr(target, lambda argv=None: seen.append(argv))
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    return seen


SCRIPTS = [  # as DPA's README calls them
    "1_convert_annotation_to_json.py",
    "2_create_tumor_masks.py",
    "3_generate_normal_patches_x40.py",
    "4_generate_tumor_patches_x40.py",
    "5_select_stain_normalization_image.py",
    "6_normalize_stain.py",
    "7_create_train_test_split.py",
    "8_merge_images.py",
    "9_resize_to_x20_and_x10.py",
]


def test_the_nine_scripts_are_the_steps_of_the_preparation(monkeypatch):
    folder = HERE / "anomaly_detection/utils/preprocessing/camelyon16_preprocessing"
    for number, script in enumerate(SCRIPTS, 1):
        assert called(monkeypatch, folder / script, "data.camelyon16.prepare.main", "--root", "x") == [
            [str(number), "--root", "x"]
        ]
    assert sorted(path.name for path in folder.glob("*.py")) == SCRIPTS


def test_folds_and_resize_are_passed_on(monkeypatch):
    folder = HERE / "anomaly_detection/utils/preprocessing"
    for name, usual in (("cifar10", ["-i", "data/cifar10"]), ("svhn", ["-i", "data/svhn"]), ("camelyon16", [])):
        script = folder / "create_folds" / f"{name}.py"
        assert called(monkeypatch, script, "data.folds.main", "-n", "3") == [[name, *usual, "-n", "3"]]
    assert called(monkeypatch, folder / "create_folds/nih.py", "data.nih.main", "-o", "x") == [["folds", "-o", "x"]]
    usual = ["-i", "data/data/nih", "-o", "data/data/nih_300"]
    assert called(monkeypatch, folder / "nih_resize.py", "data.nih.main", "-i", "x") == [["resize", *usual, "-i", "x"]]


def test_experiments_are_passed_on(monkeypatch):
    seen = called(
        monkeypatch, HERE / "run_experiments.py", "experiments.run_experiments.main", "--model", "dpa", "--ablation"
    )
    assert seen == [["anomaly", "--methods", "dpa", "--ablation"]]
