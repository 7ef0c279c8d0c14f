"""Describe a file of weights, or convert it.

    python extract/weights.py FILE_OR_FOLDER
    python extract/weights.py FILE --convert OUT.safetensors     # Palindrome's layout
    python extract/weights.py FILE --convert OUT.pth             # OpenTAD's, for its own tools
    python extract/weights.py CHECKPOINT --onnx OUT.onnx         # a network for one window or view
    python extract/weights.py CHECKPOINT --torch-export OUT.pt2

Reads mmaction2's, VideoMAE's, Hugging Face's, OpenTAD's, TAdaConv's and Palindrome's own files,
recognised by their content. No code in them is run. TAdaConv networks convert to Palindrome's
layout.
"""

import sys
from pathlib import Path

if __package__ is None:  # run as a file: its neighbours must not hide modules of their names
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from configs import cli
from configs.options import ScriptParser


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("file", type=Path, help="file or Hugging Face folder")
    parser.add_argument("--convert", type=Path, metavar="OUT", help=".safetensors or .pth to write")
    parser.add_argument("--onnx", type=Path, metavar="OUT", help="write a network as ONNX")
    parser.add_argument(
        "--torch-export", type=Path, metavar="OUT", help="write a network for torch.export"
    )
    args, _ = parser.parse()
    if args.onnx or args.torch_export:
        from train.export import export_onnx, export_torch

        for out, export in ((args.onnx, export_onnx), (args.torch_export, export_torch)):
            if out:
                print(f"{out}: {export(args.file, out)}")
        return
    from extract.checkpoints.layouts import recognise
    from extract.checkpoints.tensor_files import read_tensors
    from extract.conversion import convert, convert_tada, describe_networks, describe_tada
    from extract.tada.pretrained import recognise_tada

    content = read_tensors(args.file)
    if tada := recognise_tada(content, args.file):
        describe_tada(args.file, content, tada)
        if args.convert:
            convert_tada(args.file, tada, args.convert)
        return
    networks = recognise(content, args.file)
    describe_networks(args.file, content, networks)
    if args.convert:
        convert(args.file, networks, args.convert)


if __name__ == "__main__":
    cli.run(main)
