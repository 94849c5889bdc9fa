"""Anomaly detectors: each learns what normal images look like, and then says of others how abnormal they are.

A method is a module here, entered in `methods.METHODS`, that offers

    add_flags(parser)            its own flags; those of every method stand in train_anomaly.py, defaults may be changed
    fit(normals, val, args, device)  trains in args.logdir, a folder opened with `runs.open_run`
    load(saved, path, device)    the detector, ready to score, from the content of LOGDIR/best_checkpoint.pth at `path`
    score(detector, tiles)       tiles (B, C, t, t) float32 in [0, 1] on its device -> scores (B,), higher = more
                                 abnormal, and maps (B, h, w) of where, or None; the same in any batch, without a graph

`normals` is the training split's `data.normals.NormalTiles`, `val` the validation split's or None. They hold images of
label 0 only; a detector never sees another. `saved["config"]` holds method, tile, in_channels and what `fit` added.
"""
