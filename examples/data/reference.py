"""Reads the pictures with another program for the same models (RapidOCR, over ONNX Runtime and OpenCV).

The results, NAME.json beside each NAME.png, are committed, and the test of the OCR example compares with them; this
script is only needed to change them. It asks for the package rapidocr-onnxruntime 1.4.4:

    python examples/data/reference.py
"""

import json
import pathlib

from rapidocr_onnxruntime import RapidOCR

SETTINGS = {
    "det_limit_side_len": 960,
    "det_limit_type": "max",
    "det_mean": [0.485, 0.456, 0.406],
    "det_std": [0.229, 0.224, 0.225],
    "det_box_thresh": 0.6,
    "det_unclip_ratio": 1.5,
    "det_use_dilation": False,
}
"""PaddleOCR's, where RapidOCR's differ."""


def main():
    here = pathlib.Path(__file__).parent
    engine = RapidOCR(**SETTINGS)
    for name in ("sign", "notice"):
        found, _ = engine(str(here / f"{name}.png"))
        lines = [
            {"text": text, "confidence": round(float(score), 4), "corners": [[float(v) for v in p] for p in corners]}
            for corners, text, score in found
        ]
        rows = ",\n  ".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (here / f"{name}.json").write_text(f"[\n  {rows}\n]\n")


if __name__ == "__main__":
    main()
