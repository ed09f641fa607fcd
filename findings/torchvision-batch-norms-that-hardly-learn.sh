#!/usr/bin/env bash
# torch 2.15.0, torchvision 0.29.2: models by `torchvision.models.get_model(name, weights=None)`.
#
# Behaviour: torch's batch norm moves its running statistics by a tenth of the way at each batch, and
# most of torchvision's models keep that. Ten do not, and nothing in `get_model` says so: the running
# statistics, which `eval()` computes with, need thousands of batches to settle. Trained on a few hundred
# clips, such a model's loss falls as it should, while in `eval()` it guesses. After 100 batches of
# one distribution the first batch norm has gone this far from its start to the true mean:
#
# Output seen (Debian 12, Python 3.11, CPU, 2026-11-28):
#   resnet18: momentum 0.1, after 100 batches 100 % of the way
#   efficientnet_b0: momentum 0.1, after 100 batches 100 % of the way
#   efficientnet_b5: momentum 0.01, after 100 batches 63 % of the way
#   mobilenet_v2: momentum 0.1, after 100 batches 100 % of the way
#   mobilenet_v3_small: momentum 0.01, after 100 batches 63 % of the way
#   mnasnet0_5: momentum 0.0003, after 100 batches 3 % of the way
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uv==0.9.30
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv" torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cat > "$folder/momentum.py" <<'PYTHON'
import torch
import torchvision

NAMES = ("resnet18", "efficientnet_b0", "efficientnet_b5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5")

for name in NAMES:
    model = torchvision.models.get_model(name, weights=None)
    norm = next(each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d))
    batch = torch.randn(4, norm.num_features, 8, 8) + 1
    true = batch.mean(dim=(0, 2, 3))
    for _ in range(100):
        norm(batch)
    share = float((norm.running_mean / true).mean())
    print(f"{name}: momentum {norm.momentum:.2g}, after 100 batches {share:.0%} of the way".replace("%", " %"))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/momentum.py")
echo "$seen"
diff <(sed -n 's/^#   //p' "$0") <(echo "$seen")
