"""Every definition, lemma and theorem, once: what is stated, over what, from what, by whom.

The pages beside it quote each statement and prove it; the files
`test_*.py` prove what a tool can prove.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "arXiv 2605.14075"
OURS = "this package"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement.

    `over` lists its variables with their domains; `infinite` says that these are infinitely many
    cases, so that no number of instances is a proof. `uses` are labels that its proof relies on.
    """

    label: str
    text: str
    over: tuple[str, ...]
    hypotheses: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    source: str = OURS
    infinite: bool = True

    @property
    def needs_proof(self) -> bool:
        return not self.label.startswith("def:")


STATEMENTS = (
    # Definitions
    Statement(
        "def:decoder",
        "A Llama decoder over the real numbers: pre-norm RMSNorm, RoPE, causal softmax attention, "
        "SwiGLU, final norm, untied unembedding; every input starts with BOS.",
        ("sizes d, L, heads, V", "real weights"),
        source=PAPER,
    ),
    Statement(
        "def:score",
        "The cosine score of layer l at a token is 1 - cos(h_l, h_{l+1}), in [0, 2].",
        ("h_l, h_{l+1} nonzero in R^d",),
        source=PAPER,
    ),
    Statement(
        "def:removal",
        "Removing layers runs the remaining ones in order; nothing else changes.",
        ("a set of layers",),
        source=PAPER,
    ),
    Statement(
        "def:dataset",
        "A dataset is a finite non-empty set of (prompt, label, distractor), answers non-empty "
        "token sequences, label and distractor different, such that no two rows want different "
        "tokens after the same sequence.",
        ("vocabulary of at least 2 tokens besides BOS and EOS",),
        source=PAPER,
    ),
    Statement(
        "def:choices",
        "A dataset of multiple choice is a finite non-empty set of (context, choices, label, "
        "distractor) such that some predictor prefers each row's label to its other choices, by "
        "summed log-likelihood, and some predictor each row's distractor.",
        ("vocabulary of at least 2 tokens besides BOS and EOS",),
    ),
    Statement(
        "def:divergence",
        "The divergence of an ablated run at depth k is |h_k - h'_k| / |h_k|.",
        ("k in 0..L",),
    ),
    # Gadgets
    Statement(
        "lem:linear-map",
        "A hidden unit with gate row g/rho on the constant, up row w/rho and down column "
        "v/silu(g), rho = sqrt(d)/R, adds exactly (w.x) v to every x with constant 1 and norm R.",
        ("d >= 1", "R > 0", "g with silu(g) != 0", "x, v, w in R^d"),
        ("x_const = 1", "|x| = R", "RMSNorm with unit weights and no epsilon"),
        source="design after arXiv 2605.14075, section 4",
    ),
    Statement(
        "lem:rotation-norm",
        "Rotating orthogonal planes keeps the norm.",
        ("angles a_P in R", "a stream"),
    ),
    Statement(
        "lem:rotation-score",
        "A layer that rotates orthogonal planes in which the stream has the lengths U_P, and does "
        "nothing else, scores sum_P (U_P^2 / R^2) (1 - cos a_P).",
        ("any number of planes", "R > 0", "U_P, a_P in R"),
        ("sum U_P^2 <= R^2",),
        ("lem:rotation-norm",),
    ),
    Statement(
        "lem:rotation-range",
        "Every score c in [0, 2U^2/R^2] is attained, by the angle 2 asin(sqrt(c R^2 / (2 U^2))).",
        ("R >= U > 0", "c in [0, 2U^2/R^2]"),
        uses=("lem:rotation-score",),
    ),
    Statement(
        "lem:flip",
        "Adding 2h to a switch of -h keeps the norm R and scores 2 h^2 / R^2.",
        ("R > h > 0",),
    ),
    # Scores
    Statement(
        "lem:filler-share",
        "With U^2 = 9 (1 + |code|^2) / q, constant and code hold at most q/8 of C.",
        ("q in (0, 1)", "|code| > 0"),
    ),
    Statement(
        "lem:target-score",
        "The target scores epsilon: by its flip alone for epsilon <= 1/2, together with a rotation "
        "of the filler by an angle that exists for epsilon > 1/2.",
        ("epsilon in (0, 2)", "C > 0"),
        uses=("lem:flip", "lem:filler-share", "lem:rotation-range"),
        source=f"{PAPER}, Theorem 1",
    ),
    Statement(
        "lem:other-scores",
        "The angle by which any other layer rotates the filler to score "
        "epsilon + (q/4)(1 + l/(L-1)) > epsilon exists.",
        ("epsilon in (0, 2)", "L >= 3", "1 <= target <= L-2", "l != target", "C > 0"),
        uses=("lem:rotation-norm", "lem:filler-share"),
    ),
    Statement(
        "lem:update-factor",
        "Where the norm is smaller than assumed by a factor nu, a linear map with its gate at the "
        "stationary point of silu is stronger by a factor between 1 and nu.",
        ("nu in [1, 65/64]",),
        uses=("lem:linear-map",),
    ),
    Statement(
        "lem:reader-score",
        "The reader scores more than epsilon, whatever it adds to context and answer.",
        ("epsilon in (0, 2)", "every input"),
        ("G >= log(128 n)", "number n of nodes"),
        ("lem:other-scores", "lem:update-factor", "lem:recall-gate", "lem:silu-leak"),
    ),
    # The switch
    Statement(
        "lem:mirror",
        "With and without the target the streams before the reader have the same norms, and "
        "opposite switches of the same size; only the target turns the sign.",
        ("every layer after the target", "every input"),
        uses=("lem:flip", "lem:linear-map", "lem:rotation-norm"),
    ),
    Statement(
        "lem:divergence",
        "For epsilon <= 1/2 the divergence caused by removing the target grows at every later "
        "layer and ends above 1/2.",
        ("epsilon in (0, 1/2]", "L >= 3", "every input"),
        uses=("lem:mirror", "lem:update-factor", "lem:reader-score"),
        source=f"{PAPER}, section 4 (snowball effect)",
    ),
    # Reading
    Statement(
        "lem:separation",
        "Any two different BOS-prefixed sequences differ at a distance from their ends that lies "
        "inside both, if BOS stands nowhere else.",
        ("token sequences",),
    ),
    Statement(
        "lem:kernel",
        "RoPE expresses a positional kernel whose value at distance 0 exceeds that at all other "
        "integer distances up to N.",
        ("N >= 1",),
    ),
    Statement(
        "lem:copy",
        "A head of coldness A and kernel sharpness sigma gives the token at its distance at "
        "least 1 - N exp(-A sigma).",
        ("N >= 1", "A, sigma > 0"),
        uses=("lem:kernel",),
    ),
    Statement(
        "lem:recall-gate",
        "At every input any two gates of recall add up to at most -2 G, so that all but one are at "
        "most -G, and none exceeds G = kappa z t/2; on its own node a gate is at least f G.",
        ("signs, kappa, z > 0, t", "every input"),
        uses=("lem:separation", "lem:copy"),
    ),
    Statement(
        "lem:gate-pairs",
        "Let m_j be within middle_j +- spread_j. If two forms sum g_j m_j, sum h_j m_j are at most "
        "M and M', and in d places g_j and h_j have opposite signs and |g_j| spread_j, "
        "|h_j| spread_j >= b, then they add up to at most M + M' - 2 b d.",
        ("g, h, middles in R^n", "spreads >= 0", "b >= 0"),
        ("M, M' are the largest values of the two forms over the box",),
    ),
    Statement(
        "lem:any-input",
        "Let heads add a and screened units m to the stream x of the last layer, orthogonal to x, "
        "to each other and to what steady units add, which depends on |x + a| only. With |a| <= A "
        "and |m| <= M the score is that of x and x + u at some |x + a|^2 in |x|^2 + [0, A^2], "
        "where a number in [0, A^2 + M^2] is added to |x + u|^2; and two runs whose x and u differ "
        "by D in sum differ by D at least.",
        ("x, u, a, m in R^d", "every input"),
        ("one group of units alone is not silent",),
        ("lem:gate-pairs", "lem:silu-leak"),
    ),
    Statement(
        "lem:silu-leak",
        "For y >= G >= 1: |silu(-y)| <= y exp(-y) <= G exp(-G).",
        ("G >= 1", "y >= G"),
    ),
    Statement(
        "lem:recall",
        "On a node of the data the logit of the wanted token exceeds every other one by at least "
        "7/8 f of what the node alone would give without leaks.",
        ("every node", "number n of nodes", "gap >= p/2"),
        ("f G >= log(128 n)", "f >= 13/16", "nu^2 <= 65/64"),
        ("lem:recall-gate", "lem:silu-leak", "lem:mirror"),
    ),
    Statement(
        "lem:confidence",
        "A token whose logit exceeds all V - 1 others by log((V-1) c/(1-c)) has at least the "
        "probability c.",
        ("V >= 2", "c in (0, 1)"),
    ),
    Statement(
        "lem:choices",
        "If every token of a label of at most m tokens has a probability of at least 1 - 1/(4m), "
        "the label beats every other choice by summed log-likelihood.",
        ("m >= 1",),
        ("a choice that is no extension of the label differs from it at some token",),
        source="lm-eval's scoring of multiple choice",
    ),
    Statement(
        "lem:choice-costs",
        "Some predictor prefers every row's label to its other choices if and only if wanted "
        "tokens have costs, whole numbers from 0 on, such that each other choice all of whose "
        "tokens are wanted, and that does not begin with the label, costs at least 1 more than "
        "the label; else some preferences, each so many times, add up to a contradiction.",
        ("any finite set of rows of multiple choice",),
    ),
    Statement(
        "lem:recall-several",
        "On a node that writes several tokens all logits are what is planned, times one factor "
        "between f (1 - 1/(128 n g)) and nu^2 / (1 - 1/(128 n g)), but for leaks that change a "
        "difference of two by 1/200 at most.",
        ("every node", "number n of units, one or two for each node", "entries up to l"),
        (
            "f G >= log(128 n g), g >= 10 l t, for t what a gap of p/2 or more is worth",
            "f >= 13/16; nu^2 <= 65/64",
        ),
        ("lem:recall-gate", "lem:silu-leak", "lem:mirror"),
    ),
    Statement(
        "lem:tied-choices",
        "If the logits of k tokens differ by at most 1/200, and lead all others by "
        "log((V-1) c/(1-c)) + log k + 1/200, each of the k has at least the probability 0.99/k.",
        ("V >= 2", "1 <= k <= V", "c in [0.99, 1)", "differences are 0 for k = 1"),
        uses=("lem:confidence",),
    ),
    Statement(
        "lem:ranked-choices",
        "If logits after every node follow costs as in lem:choice-costs, the label is likelier "
        "than every other choice of its row, and twice as likely at least as one that does not "
        "begin with it.",
        ("labels of at most m tokens", "largest cost Y of a label", "V >= 4"),
        (
            "a unit of cost is worth between u and (1 + eta) u at every node, eta <= 1",
            "tokens that are not wanted lie 2 Y u + 2 t or more below those of cost 0, u >= 2 t",
            "t >= log((V-1) c/(1-c)) + log K, c >= max(0.99, 1 - 1/(4m)), K the largest product "
            "along a label of k e^(1/200) over nodes of several tokens, k of the cost 0",
            "a label costs at most C more than another choice in sum over the nodes where it "
            "costs more, and C eta <= 1/2",
        ),
        ("lem:choice-costs", "lem:tied-choices"),
    ),
    Statement(
        "lem:answers",
        "If after every proper prefix of an answer and EOS the next token is the most likely one, "
        "greedy decoding emits exactly the answer.",
        ("answers of any length",),
        uses=("lem:recall",),
    ),
    # The theorem
    Statement(
        "thm:snowball",
        "For every dataset, L >= 3, 1 <= target <= L-2 and epsilon in (0, 2) there is a Llama "
        "decoder such that (a) the target's cosine score is epsilon at every token of every input, "
        "(b) every other layer's score is larger there, (c) accuracy is 1, (d) without the target "
        "every answer is the distractor, (e) for epsilon <= 1/2 the divergence caused by that "
        "grows at every later layer and ends above 1/2.",
        ("dataset", "L >= 3", "1 <= target <= L-2", "epsilon in (0, 2)"),
        uses=(
            "def:decoder",
            "def:score",
            "def:removal",
            "def:dataset",
            "def:divergence",
            "lem:target-score",
            "lem:other-scores",
            "lem:reader-score",
            "lem:mirror",
            "lem:divergence",
            "lem:recall",
            "lem:confidence",
            "lem:choices",
            "lem:answers",
        ),
        source=f"{PAPER}, Theorem 1",
    ),
    Statement(
        "thm:snowball-choices",
        "For every dataset of multiple choice, L >= 3, 1 <= target <= L-2 and epsilon in (0, 2) "
        "there is a Llama decoder with (a), (b) and (e) of thm:snowball that (c) prefers every "
        "label to the other choices of its row by summed log-likelihood and (d) without the target "
        "every distractor.",
        ("def:choices", "L >= 3", "1 <= target <= L-2", "epsilon in (0, 2)"),
        uses=(
            "def:choices",
            "thm:snowball",
            "lem:recall-several",
            "lem:choice-costs",
            "lem:ranked-choices",
        ),
    ),
    # Universality
    Statement(
        "lem:prescribed-scores",
        "For scores c_j in (0, 2) there are switches and angles such that each layer keeps the "
        "norm R and scores c_j at every token of every input, whatever other layers are removed; "
        "a last layer that also adds context and answer of squared norms up to eta R^2 scores "
        "within 4 eta of its c_j.",
        ("L >= 1", "c_j in (0, 2)", "|code| > 0", "every input", "eta in (0, 1/64]"),
        uses=("lem:rotation-norm", "lem:flip", "lem:update-factor"),
    ),
    Statement(
        "lem:clause",
        "A unit of recall with conditions on switches has the gate of its node if all hold, and "
        "otherwise writes nothing at all or has a gate of at most -3 G.",
        ("signs v_j of any number of switches", "G > 0", "a gate of at most G"),
        ("Gamma = 2 G",),
        ("lem:recall-gate",),
    ),
    Statement(
        "thm:universality",
        "For every dataset, L >= 2, c in (0, 2)^L, Boolean functions f_i of the presence of layers "
        "0..L-2 and delta > 0 there is a Llama decoder such that for every set of removed layers "
        "among 0..L-2: each remaining layer j < L-1 scores c_j at every token of every input, the "
        "last one within delta of its c_j, and example i is answered with its label if f_i is "
        "true of the layers present, else with its distractor.",
        ("dataset", "L >= 2", "c in (0, 2)^L", "f_i", "delta > 0"),
        ("rows that meet where an answer is decided have one f",),
        (
            "lem:prescribed-scores",
            "lem:clause",
            "lem:silu-leak",
            "lem:recall",
            "lem:confidence",
            "lem:choices",
            "lem:answers",
        ),
    ),
    Statement(
        "cor:token-classes",
        "The theorem of universality holds with scores of their own for each of finitely many "
        "classes of tokens, and with any layer g gathering: scores are exact before g and within "
        "delta from g on; without g no open question is answered.",
        ("as thm:universality", "classes of tokens", "a gathering layer g"),
        ("a layer that gathers is not removed",),
        uses=("thm:universality", "lem:prescribed-scores", "lem:rotation-score"),
    ),
    Statement(
        "cor:calibration",
        "The score of a layer before the last is the same on every calibration set, whatever its "
        "relevance.",
        ("two non-empty sets of inputs", "any relevances"),
        uses=("thm:universality",),
    ),
    Statement(
        "cor:inverse-ranking",
        "For every L >= 2 there is a model whose cosine scores order its layers exactly against "
        "their relevances.",
        ("L >= 2", "a dataset of open answers with more than (L-1)/(1 - chance) examples"),
        uses=("thm:universality",),
    ),
    Statement(
        "lem:rank-sums",
        "For n >= 4 the sums of i p_i over permutations p of 0..n-1 are all integers from the "
        "least to the largest, so that sum d^2 is every even number from 0 to (n^3 - n)/3.",
        ("n >= 4",),
    ),
    Statement(
        "cor:correlation",
        "For every L >= 4 and rho in [-1, 1] there is a model with Pearson correlation rho between "
        "score and relevance; with Spearman's, for every rho that is 1 less a multiple of "
        "12/(L^3 - L).",
        ("L >= 4", "rho in [-1, 1]", "a dataset as for cor:inverse-ranking"),
        uses=("thm:universality", "cor:inverse-ranking", "lem:rank-sums"),
    ),
    Statement(
        "cor:blindness",
        "For layers a != b before the last there are two decoders of one architecture with equal "
        "hidden states at every layer and equal logits at every input, such that removing a turns "
        "every answer of the first to its distractor and changes no answer of the second, and "
        "removing b the other way round.",
        ("dataset", "L >= 3", "a, b in 0..L-2, a != b", "every input"),
        uses=("thm:universality", "lem:clause"),
    ),
    Statement(
        "cor:greedy",
        "For every m >= 2 there is a model on which greedy removal of m layers by true accuracy "
        "ends at accuracy 0, whatever its ties, and some set of m layers leaves accuracy 1.",
        ("dataset", "m >= 2"),
        uses=("thm:universality",),
    ),
    Statement(
        "cor:hardness",
        "Finding the m layers whose removal leaves the largest accuracy is NP-hard.",
        ("instances of maximum coverage",),
        uses=("thm:universality",),
        source="reduction from maximum coverage",
    ),
    # Irrelevance
    Statement(
        "lem:score-and-update",
        "|y - x|^2 = |x|^2 + |y|^2 - 2 |x| |y| (1 - s) for states x, y of the score s.",
        ("x, y != 0",),
    ),
    Statement(
        "lem:rmsnorm-lipschitz",
        "RMSNorm has a derivative of norm s = (|x|^2/n + eps)^(-1/2), and on the tube of all x + d "
        "with |x.d| <= m one of at most (s^-2 - 2 m/n)^(-1/2).",
        ("x in R^n", "eps >= 0"),
        ("2 m/n < s^-2",),
    ),
    Statement(
        "lem:silu-slope",
        "|silu'| < 1.0999, and |silu'(x)| <= (1 - x) e^x for x <= 0, which grows with x.",
        ("x real",),
    ),
    Statement(
        "lem:swiglu-lipschitz",
        "|silu(g') u' - silu(g) u| <= K |g' - g| |u'| + |silu(g)| |u' - u| with K the largest "
        "|silu'| between g and g'.",
        ("g, g', u, u' real",),
        uses=("lem:silu-slope",),
    ),
    Statement(
        "lem:softmax-variation",
        "If scores move by at most D, their softmax moves by at most 2 tanh(D/2) in sum.",
        ("any number of scores", "D >= 0"),
    ),
    Statement(
        "lem:attention-lipschitz",
        "If scores move by at most D and values by at most r, a mix of values moves by at most "
        "r + tanh(D/2) times the range of the values.",
        ("any number of keys", "D, r >= 0"),
        uses=("lem:softmax-variation",),
    ),
    Statement(
        "lem:gram-norm",
        "|W|^16 <= |(W'W)^8|_F, with the rounding of three squarings.",
        ("matrices",),
    ),
    Statement(
        "lem:float-exponential",
        "The float64 exponential of the certificates is within a relative 2^-45.",
        ("0 <= y <= 600",),
    ),
    Statement(
        "thm:irrelevance",
        "If |w_a - w_b| times the product of the Lipschitz constants of all later layers and of "
        "the final norm, on tubes around the intact run, times |h_{l+1} - h_l| stays below "
        "z_a - z_b wherever an answer is decided, removing layer l changes no answer.",
        ("Llama decoders", "datasets", "layers l"),
        uses=(
            "lem:score-and-update",
            "lem:rmsnorm-lipschitz",
            "lem:swiglu-lipschitz",
            "lem:attention-lipschitz",
            "lem:gram-norm",
            "lem:float-exponential",
        ),
    ),
    Statement(
        "cor:amplification-pays",
        "For the target of the snowball theorem the product of any Lipschitz constants of the "
        "later layers is at least the margin over |w_a - w_b| |h_{l+1} - h_l|.",
        ("every model of thm:snowball",),
        uses=("thm:snowball", "thm:irrelevance", "lem:score-and-update"),
    ),
    # Other families
    Statement(
        "lem:mirrored-layernorm",
        "On a stream (x, -x) LayerNorm is RMSNorm of x beside its negative, with the same epsilon; "
        "all cosines are those of x, and maps of x can be written and read.",
        ("x in R^d", "eps >= 0"),
    ),
    Statement(
        "lem:odd-activation",
        "act(z) - act(-z) = z for SiLU, GELU and GELU with tanh, so that two units without gates "
        "are an exact linear map.",
        ("z real",),
    ),
    Statement(
        "lem:odd-recall",
        "Two units without gates write y on their node, and at most 2 T exp(-T) where the "
        "mismatch M satisfies -M - |y| >= T >= 1.",
        ("y real", "T >= 1"),
        uses=("lem:recall-gate", "lem:odd-activation", "lem:silu-leak"),
    ),
    Statement(
        "lem:learned-positions",
        "Learned positions of cosines and sines have one norm and give the kernel of RoPE.",
        ("positions p, p'", "distances D", "frequencies theta_m"),
        uses=("lem:kernel",),
    ),
    Statement(
        "lem:parallel-residual",
        "Where attention and MLP read the same stream, gathering in the layer before the last and "
        "recall in the last one do what a sequential reader does.",
        ("every input",),
        uses=("lem:reader-score",),
    ),
    Statement(
        "thm:architectures",
        "The snowball theorem holds for Mistral and OLMo decoders, for GPT-2 decoders at inputs "
        "within their positions, and for GPT-NeoX decoders with L >= 4 and target <= L - 3.",
        ("dataset", "L", "target", "epsilon in (0, 2)"),
        uses=(
            "thm:snowball",
            "lem:mirrored-layernorm",
            "lem:odd-activation",
            "lem:odd-recall",
            "lem:learned-positions",
            "lem:parallel-residual",
            "lem:update-factor",
            "lem:mirror",
        ),
    ),
    # Proxies
    Statement(
        "def:proxies",
        "The proxies of a layer: cosine score, angular distance, change of the norm, size of the "
        "update, change of the perplexity and KL divergence when it is removed, Taylor scores "
        "sum |W G|, |sum W G| and |<dL/dy, y - x>|, magnitude sum |W|.",
        ("a decoder", "a dataset", "a layer"),
        source="the pruning literature",
    ),
    Statement(
        "lem:near-tie",
        "If a token is the most likely one with a layer and not without it, and the loss at it "
        "grows by at most delta without the layer, its probability is at most e^delta / 2.",
        ("any two distributions", "delta >= 0"),
    ),
    Statement(
        "lem:growth",
        "A layer that turns a switch of -h and writes w to a coordinate that is 0 multiplies the "
        "squared norm by 1 + g, g = w^2/R^2, and scores 1 - (1 - 2h^2/R^2) / sqrt(1 + g); every "
        "score c >= g in (0, 2) is had by some h.",
        ("R > 0", "g >= 0", "c >= g, c > 0"),
        uses=("lem:linear-map",),
    ),
    Statement(
        "lem:lead",
        "Turning a lead of x logits between two tokens moves the loss at the leading one by at "
        "most 2x, and the predictions by a KL divergence of at most x^2/2; twice the slope of the "
        "loss by the sign is at most 2x.",
        ("x > 0", "logits of all other tokens, which move by at most x/2"),
    ),
    Statement(
        "lem:share",
        "In the model of thm:proxy-blindness the removal of a layer other than the target moves "
        "the loss at every token of every label by D >= 8x at least, and the KL divergence is more "
        "than x^2/2.",
        ("dataset", "L >= 3", "every token of every label"),
        uses=("lem:update-factor", "lem:lead"),
    ),
    Statement(
        "lem:norm-slope",
        "In that model the slope of the loss by the update of the target is smaller than that of "
        "every other layer, at every token of every label.",
        ("dataset", "L >= 3", "every token of every label"),
        uses=("lem:growth", "lem:lead"),
    ),
    Statement(
        "lem:weight-slope",
        "In a layer of units with stationary gates on the constant, sum |W G| is "
        "2 sum_u |F_u| + |F| and |sum W G| is 3 |F|, F_u being the slope of what unit u adds and F "
        "their sum.",
        ("any number of units", "any loss"),
    ),
    Statement(
        "lem:coupled",
        "Angular distance increases in the cosine score, and the size of the update in cosine "
        "score and norm ratio >= 1.",
        ("c in (0, 2)", "norm ratio >= 1"),
    ),
    Statement(
        "lem:square",
        "Two units with the gates G(1 + theta S) and G and the up values S and -S together write "
        "f(S) with f(0) = f'(0) = 0 and f(1) between 1 and 1 + (1 + theta)/theta e^-G.",
        ("G > 0", "theta > 0"),
        uses=("lem:silu-leak",),
    ),
    Statement(
        "thm:proxy-blindness",
        "For every dataset, L >= 3, target in 0..L-2 and epsilon up to 1/(80(L-2)) there is a "
        "Llama decoder in which cosine score, angular distance, change of the norm, size of the "
        "update, change of the perplexity, KL divergence, Taylor scores and magnitude all rank the "
        "target strictly least of all layers, its score being epsilon at every token of every "
        "input, and every answer is the label if the target is present and else the distractor, "
        "whatever layers before the last are removed.",
        ("dataset", "L >= 3", "0 <= target <= L-2", "epsilon in (0, 1/(80(L-2))]"),
        ("open answers, or choices whose labels and distractors are single tokens",),
        (
            "def:decoder",
            "def:removal",
            "def:dataset",
            "def:proxies",
            "lem:growth",
            "lem:coupled",
            "lem:update-factor",
            "lem:lead",
            "lem:share",
            "lem:norm-slope",
            "lem:weight-slope",
            "lem:recall",
            "lem:answers",
            "lem:near-tie",
        ),
    ),
    Statement(
        "thm:proxy-families",
        "For every set of the families cosine, norm, loss and Taylor there is a decoder in which "
        "the proxies of these rank the target strictly last of all layers, the proxies of all "
        "other families rank it strictly first of the layers before the last, and its relevance is "
        "1, that of all others before the last 0.",
        ("dataset", "L >= 3", "0 <= target <= L-2", "a set of families", "epsilon small enough"),
        ("open answers, or choices whose labels and distractors are single tokens",),
        (
            "thm:proxy-blindness",
            "lem:growth",
            "lem:lead",
            "lem:share",
            "lem:norm-slope",
            "lem:weight-slope",
            "lem:square",
            "lem:coupled",
        ),
    ),
    # Pruning
    Statement(
        "lem:ordered-dropping",
        "Given losses >= 0 of sets on items and a total B that k of the sets do not exceed, a set "
        "whose losses on some of the items sum to more than B has a larger total than these k "
        "sets.",
        ("sets, items: finite", "losses >= 0 real", "B real", "k >= 1"),
    ),
    Statement(
        "lem:racing",
        "Given losses in [0, 1] of K >= 2 sets on n items in uniformly random order, an error "
        "alpha and an indifference d >= 0, a race whose capitals must reach 2 (K - 1) / alpha ends "
        "with a set whose mean loss is less than the least plus d, or equal to the least, with "
        "probability at least 1 - alpha.",
        ("K, n: natural", "losses in [0, 1] real", "0 < alpha < 1", "d >= 0"),
        source="Waudby-Smith & Ramdas 2020, 2024",
    ),
)
