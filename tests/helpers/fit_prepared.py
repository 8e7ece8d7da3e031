"""Fit a model on the prepared folder ``data``, and print the label of a text."""

import crepe_dist

if __name__ == "__main__":
    model = crepe_dist.fit("data", epochs=1, model="ngrams", buckets=4096)
    print("label", model.predict(["the invoice"])[0].label)
