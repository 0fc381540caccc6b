#!/usr/bin/env bash
# bash tests/outside.sh PYTHON WHEEL: installs a wheel into an empty environment, and uses it in an empty folder.
# KEEP=1 keeps the folder. TORCH names what is installed as torch.
set -euo pipefail
python=$1 wheel=$(realpath "$2")
folder=$(mktemp -d)
[ -n "${KEEP:-}" ] || trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH K24LAB_HOME K24LAB_FIGURES
export WANDB_MODE=offline WANDB_SILENT=true OMP_NUM_THREADS=1
cd "$folder"
"$python" -m venv env
pip() { env/bin/python -m pip "$@" --quiet --disable-pip-version-check; }
k24lab() { (cd here && ../env/bin/k24lab "$@"); }
mkdir here
pip install "${TORCH:-torch==2.13.0}"

start=$SECONDS
pip install "$wheel"
k24lab replay --team rolenav8
echo "from pip install (torch was there) to an animation: $((SECONDS - start)) s"
test -s here/figures/replay_rolenav8.gif

k24lab --help > here/help.txt
k24lab doctor kernels notebooks vmas || true  # names what is missing, and its command
k24lab train --t-max 2000 --n-envs 8 --batch-size 8 --hidden-dim 16 --test-episodes 8 --loggers csv --name first --quiet
test -s here/runs/first/*/metrics.csv
refused() {  # a command that must fail, in one line that holds a text
  local text=$1 said
  shift
  if said=$(k24lab "$@" 2>&1 > /dev/null); then echo "$*: not refused" >&2; exit 1; fi
  if [ "$(wc -l <<< "$said")" != 1 ] || ! grep -qF "$text" <<< "$said"; then echo "$*: $said" >&2; exit 1; fi
}
refused "pip install 'k24lab[notebooks]'" notebooks 01_masks
refused "pip install 'k24lab[vmas]'" replay --team vmas_navigation
refused "pip install 'k24lab[mpe]'" train --task mpe2/simple_spread
refused "pip install 'k24lab[wandb]'" train --loggers wandb --name other
refused "allowed: rolenav8, vmas_navigation" replay --team rolenav9

pip install "k24lab[notebooks,mpe,vmas,tensorboard,wandb] @ file://$wheel"
touch installed
k24lab replay --team vmas_navigation --episodes 1
k24lab train --task mpe2/simple_spread --t-max 2000 --n-envs 8 --batch-size 8 --name mpe2 --loggers tensorboard,wandb --quiet
test -s here/runs/mpe2/*/wandb/offline-run-*/*.wandb
k24lab notebooks --copy copy
sed -e 's/seed: .*/seed: [0, 1]/' here/copy/grids/demo.yaml > here/small.yaml
echo 'common: {t_max: 3200, hidden_dim: 16, n_envs: 8, batch_size: 8, test_episodes: 8, snapshot_interval: 800}' >> here/small.yaml
k24lab sweep small.yaml --jobs 2
k24lab notebooks --runs demo --jobs 2
(cd here && timeout 20 ../env/bin/k24lab sweep demo --jobs 1 > sweep.txt 2>&1) || [ $? = 124 ]  # by its name: it starts
[ "$(ls here/runs/demo | wc -l)" = 20 ]  # 8 of the small grid and 12 of the package's
written=$(find env -newer installed -type f ! -name '*.pyc')
[ -z "$written" ] || { echo "written into the installation: $written" >&2; exit 1; }
echo "the wheel works outside of the repository"
