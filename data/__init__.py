"""What every data set offers to every method.

A data set is a torch Dataset, and an image_set.ImageSet where that has the answers, with

    len(data), data[i] -> (image (C, H, W) float32, label: 1 with the object, 0 without, -1 where it is not known)
    names         list of file names, one for each image
    labels        (N,) int64
    in_channels   C
    outline       RGB colour in which pictures outline its objects
    has_objects   whether it knows where the objects are
    object_mask(i) -> bool (H, W), the pixels of image i's object; None without an object and where it is not known
    o2i(i)        -> the object's share of the image; None likewise
    batches_on(device, batches) -> a loader that composes the images on the device; None where it has none
    fingerprint() -> hex digest of what it holds, wherever it lies
"""

SPLITS = ("train", "val", "test")
