# %% [markdown]
# The steps of the original Gluon notebook, `Crepe-Gluon.ipynb`, with the API of this package. The file runs as a
# script, or cell by cell in an editor that supports `# %%`:
#
#     python examples/notebook.py reviews.csv
#
# `reviews.csv` has the columns `label` and `text`. The notebook was trained on seven categories of Amazon reviews.
# docs/data.md describes how to prepare these for `python -m crepe_dist.train`, which needs far less memory than this
# script.

# %%
import argparse
from pathlib import Path

from crepe_dist.distributed.launch import import_mxnet

import_mxnet()

import mxnet as mx
import numpy as np
import pandas as pd
from mxnet import autograd, gluon

from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.distributed.device import check_mxnet_gpu, select_device
from crepe_dist.engines.gluon_engine import mxnet_context
from crepe_dist.networks.paper.config import PaperConfig
from crepe_dist.networks.paper.gluon import Paper
from crepe_dist.runs.checkpoint import file_name

# %% [markdown]
# ### Settings
# The defaults are the settings of the notebook.

# %%
parser = argparse.ArgumentParser(description="Train the paper's network step by step.")
parser.add_argument("csv", help="file with the columns label and text")
parser.add_argument("--feature-len", type=int, default=1014, help="characters per document")
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--filters", type=int, default=256)
parser.add_argument("--units", type=int, default=1024)
parser.add_argument("--dropout", type=float, default=0.5)
parser.add_argument("--learning-rate", type=float, default=0.01)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--weight-decay", type=float, default=0.00001)
parser.add_argument("--epochs", type=int, default=7)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path())
parser.add_argument("--text", default="Good stuff | This album is definitely above the previous one")
args = parser.parse_args()
mx.random.seed(args.seed)
np.random.seed(args.seed)  # Gluon's DataLoader shuffles with the global generator of NumPy

# %% [markdown]
# ### Load and shuffle the data

# %%
data = pd.read_csv(args.csv, dtype=str).sample(frac=1, random_state=args.seed).reset_index(drop=True)
categories = sorted(data["label"].unique())
print(data["label"].value_counts())

# %% [markdown]
# ### Encode
# A character takes one byte. In the notebook, it takes 69 floats; here, the network computes the one-hot matrix on the
# device. The case `notebook` works like the function `encode` of the notebook: it reads the first characters in order,
# and upper case is unknown. The default of `CharEncoder()` is the encoding of the paper: it lower-cases the text, and
# reads it in reverse.

# %%
encoding = CharEncoder("notebook", args.feature_len)
char_ids = encoding.encode(data["text"].tolist())  # uint8 [documents, feature_len]
labels = data["label"].map(categories.index).to_numpy("float32")

# %% [markdown]
# ### Splits, data sets, loaders

# %%
split = int(0.8 * len(data))
train_dataset = gluon.data.ArrayDataset(char_ids[:split], labels[:split])
test_dataset = gluon.data.ArrayDataset(char_ids[split:], labels[split:])
train_loader = gluon.data.DataLoader(train_dataset, batch_size=args.batch_size, shuffle=True)
test_loader = gluon.data.DataLoader(test_dataset, batch_size=6 * args.batch_size)

# %% [markdown]
# ### Network, initial parameters, loss, optimizer

# %%
device = mxnet_context(select_device("auto", check_mxnet_gpu))  # mx.gpu(), or mx.cpu() without one
net = Paper(
    PaperConfig(encoding.num_ids, encoding.feature_len, len(categories), args.filters, args.units, dropout=args.dropout)
)
net.initialize(mx.init.Xavier(magnitude=2.24), ctx=device)
net.hybridize()
print(net)
softmax_cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
settings = {"learning_rate": args.learning_rate, "momentum": args.momentum, "wd": args.weight_decay}
trainer = gluon.Trainer(net.collect_params(), "sgd", settings)


# %% [markdown]
# ### Evaluate


# %%
def evaluate_accuracy(loader: gluon.data.DataLoader, net: Paper) -> float:
    accuracy = mx.metric.Accuracy()
    for review, label in loader:
        accuracy.update(preds=net(review.as_in_context(device)).argmax(axis=1), labels=label.as_in_context(device))
    return float(accuracy.get()[1])


# %% [markdown]
# ### Train

# %%
for epoch in range(args.epochs):
    moving_loss = 0.0
    for batch, (review, label) in enumerate(train_loader):
        with autograd.record():
            loss = softmax_cross_entropy(net(review.as_in_context(device)), label.as_in_context(device))
        loss.backward()
        trainer.step(len(review))
        current = float(loss.mean().asscalar())
        moving_loss = current if batch == 0 else 0.99 * moving_loss + 0.01 * current
        if batch % 50 == 0:
            print(f"Batch {batch}: {current:.4f}, {moving_loss:.4f}")
    test_accuracy = evaluate_accuracy(test_loader, net)
    path = args.out / file_name(epoch, test_accuracy)
    net.save_parameters(str(path))
    print(f"Epoch {epoch}. Loss: {moving_loss:.4f}, Test_acc {test_accuracy:.4f}, {path}")

# %% [markdown]
# ### Predict
# The parameter file does not contain the classes, so another program must name them:
# `crepe_dist.load(path, classes=categories)`.

# %%
output = net(mx.nd.array(encoding.encode([args.text]), ctx=device, dtype="uint8"))
probabilities = mx.nd.softmax(output)[0].asnumpy()
print(f"Predicted: {categories[probabilities.argmax()]}")
for category, probability in zip(categories, probabilities):
    print(f"{category} {probability:.1%}")
