"""Search a folder of images by an image: vectors on disk, then nearest neighbours.

python examples/search.py photos --query cat.jpg --out build/search
"""

from __future__ import annotations

import argparse
import importlib.util
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import featnet

PHOTOS = sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".jpg", ".png"))
SIDE = 96  # of the pictures in the sheet


def make_folder(folder: Path, count: int) -> None:
    """Crops of the photographs in a folder for each, where no folder was named."""
    rng = random.Random(0)
    for number in range(count):
        photo = PHOTOS[number % len(PHOTOS)]
        path = folder / photo.stem / f"{number:03}.jpg"
        if path.exists():
            continue
        image = Image.open(photo).convert("RGB")
        side = round(min(image.size) * rng.uniform(0.4, 0.9))
        left, top = (rng.randrange(length - side + 1) for length in image.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((left, top, left + side, top + side)).resize((224, 224)).save(path)


def nearest(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of each query's nearest vectors, (queries, count) each, best first.

    Vectors have the length 1, so that a product is a cosine.
    """
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return index.search(queries, count)
    cosines = queries @ vectors.T
    rows = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(cosines, rows, 1), axis=1, kind="stable")
    rows = np.take_along_axis(rows, order, 1)
    return np.take_along_axis(cosines, rows, 1), rows


def draw(queries: list[Path], results: list[list[Path]]) -> Image.Image:
    """A row for each query: the query, a gap, and its neighbours."""
    gap = SIDE // 8
    width = SIDE * (1 + max(map(len, results))) + gap
    sheet = Image.new("RGB", (width, SIDE * len(queries)), "white")
    for row, (query, paths) in enumerate(zip(queries, results, strict=True)):
        for column, path in enumerate([query, *paths]):
            picture = Image.open(path).convert("RGB")
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(picture, (SIDE * column + (gap if column else 0), SIDE * row))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="default: crops of four photographs")
    parser.add_argument("--query", nargs="+", type=Path, default=PHOTOS, help="images to look for")
    parser.add_argument("--count", type=int, default=6, help="neighbours of each (default: 6)")
    parser.add_argument("--crops", type=int, default=80, help="where no folder is named")
    parser.add_argument("--out", type=Path, default=Path("build/search"))
    args = parser.parse_args()
    if args.folder is None:
        args.folder = args.out / "photos"
        make_folder(args.folder, args.crops)
    net = featnet.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        out_indices=(3, 4),
        checkpoint_path=featnet.demo_weights(),
    ).eval()
    done = featnet.extract_images(net, args.folder, out=args.out / "vectors", pool="gem")
    print(f"{done.images} images, {done.failed} failed, {done.kept} were done already")

    features = featnet.read_features(args.out / "vectors")
    keys, vectors = list(features), features.matrix().numpy()
    with torch.inference_mode():
        maps = net(featnet.create_transform(net)(args.query))
        queries = featnet.pool_features(maps, "gem").numpy()
    cosines, rows = nearest(vectors, queries, min(args.count, len(keys)))

    same = 0
    for query, row, values in zip(args.query, rows, cosines, strict=True):
        same += sum(Path(keys[i]).parent.name == query.stem for i in row)
        print(query.name, *(f"{keys[i]} {x:.2f}" for i, x in zip(row, values, strict=True)))
    if args.query is PHOTOS:
        print(f"{same} of {rows.size} neighbours are crops of the query")
    places = [[Path(features.record(keys[i])["image"]) for i in row] for row in rows]
    draw(args.query, places).save(args.out / "found.jpg", quality=85)
    print(f"queries and their neighbours: {args.out / 'found.jpg'}")


if __name__ == "__main__":
    main()
