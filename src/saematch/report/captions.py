"""Captions of figures on pages."""

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
    "folding": "Effect of folding on finding the match and on decoding, one change at a time.",
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
