"""Captions of figures on pages."""

INTERVALS = (
    "Bands and bars around values are confidence intervals from a jackknife over texts "
    "(`intervals.level`, 95 % by default); many are narrower than a line."
)
"""Sentence that follows the captions of a run's figures."""

CAPTIONS = {
    "norms": "Mean norm of the hidden states and mean threshold of each layer, and the change of "
    "norms from the source to the target layer.",
    "mse": "Mean squared error between the folded parameters of matched features, by layer pair.",
    "matching": "Recall, matching score and Jaccard index of each arm, by layer pair.",
    "explained_variance": "Explained variance of hidden states that skip a layer, by layer pair "
    "and text set.",
    "delta_loss": "Increase of the language model's loss with a skipped layer, by layer pair and "
    "text set.",
    "feature_mse": "Distribution over matched features of the squared error of decoder vectors.",
    "persistence": "Similarity of features of a source layer to their matches in later layers.",
    "sparsity": "Explained variance and increase of the loss against the mean L0 of the SAEs.",
    "similar_l0": "Mean L0 of two suites by layer, and the variance that each suite explains.",
    "quantiles": "Explained variance of matches that keep only a share of their features.",
    "quantiles_loss": "Increase of the loss of matches that keep only a share of their features.",
    "folding": "Gain in explained variance by folding, for finding (the match is made between "
    "folded instead of unfolded features) and for decoding (activations are carried in units of "
    "thresholds instead of decoder norms), one change at a time.",
    "paths": "Features followed through the layers, with the similarity of each step.",
    "planted": "Recall and explained variance on SAEs with a known permutation.",
    "judge_layers": "The judge's labels of matched features by layer pair, and their mean score.",
    "judge_controls": "The judge's mean score of each arm next to its controls, and the agreement "
    "of repeated judgements.",
    "mse_by_label": "Squared error of the decoder vectors of judged pairs, by the judge's label.",
    "explained_pairs": "Explanations of the matched features with the least and the greatest "
    "squared error.",
    "explained_paths": "Features followed through the layers, with their explanations.",
    "effect": "Effect and off rate of the best partner after removing the source feature, with "
    "controls and ceilings, by layer pair.",
    "partners": "Off rate of the best partners after removing the source feature, against the "
    "number of partners.",
    "changes": "Change of the partner's pre-activation as predicted from the weights, against the "
    "measured change.",
    "leaderboard": "Metrics of each arm over all pairs, with intervals; the best arms are blue.",
    "others": "Metrics of evaluations from other packages, by layer pair and arm.",
    "training": "Explained variance, L0 and dead features of each layer during training.",
}
"""Caption of each figure, by the names of ``figures.py``."""

IN_THE_PAPER = {
    "norms": "figure 1",
    "mse": "figure 3",
    "feature_mse": "figure 5",
    "persistence": "figure 8",
    "sparsity": "figure 14",
    "similar_l0": "figure 15",
    "quantiles": "figures 16 and 17",
    "quantiles_loss": "figures 16 and 17",
    "explained_variance": "figures 10 and 11",
    "delta_loss": "figures 10 and 11",
    "matching": "figures 7 right and 12",
    "paths": "figures 18 and 19",
    "judge_layers": "figures 4 and 7 left",
    "mse_by_label": "figure 6",
    "explained_paths": "figures 18 and 19",
    "explained_pairs": "figure 5",
}
"""Figures of the paper that show the same."""


def caption_text(name: str) -> str:
    """Return a figure's caption in Markdown, with its name and its number in the paper."""
    paper = f" (the paper's {IN_THE_PAPER[name]})" if name in IN_THE_PAPER else ""
    return f"**{name}**{paper}. {CAPTIONS[name]}"
