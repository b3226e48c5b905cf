(** The snowball theorem, stated: definitions of a Llama decoder over the real numbers, of removal,
    score, divergence, greedy answers and datasets, and the theorem as a proposition.
    [Snowball.v] proves it. Nothing else has to be read to know what is proved. *)
From Coq Require Import Reals List Arith.
Import ListNotations.
Open Scope R_scope.

(** * Vectors and matrices
    A vector is a function from coordinates 0, 1, 2, ... to reals, of which the first [d] count.
    A matrix is given by its rows. *)
Definition vec := nat -> R.
Definition matrix := nat -> vec.
Fixpoint sum (n : nat) (f : nat -> R) : R := match n with O => 0 | S k => sum k f + f k end.
Definition dot (d : nat) (x y : vec) : R := sum d (fun i => x i * y i).
Definition times (d : nat) (W : matrix) (x : vec) : vec := fun row => dot d (W row) x.
Definition plus (x y : vec) : vec := fun i => x i + y i.
Definition minus (x y : vec) : vec := fun i => x i - y i.
Definition norm (d : nat) (x : vec) : R := sqrt (dot d x x).
Definition cosine (d : nat) (x y : vec) : R := dot d x y / (norm d x * norm d y).

(** * The decoder: pre-norm RMSNorm, RoPE, causal softmax attention, SwiGLU, untied unembedding.
    Heads have [2 * half] dimensions; [group] heads on end share a key and a value. The learned scales
    of RMSNorm are 1. *)
Record layer := {
  Wq : nat -> matrix; Wo : nat -> matrix;  (* of each head: 2 half x width; width x 2 half *)
  Wk : nat -> matrix; Wv : nat -> matrix;  (* of each group: 2 half x width *)
  Wgate : matrix; Wup : matrix;                                (* hidden x width *)
  Wdown : matrix }.                                            (* width x hidden *)
Record decoder := {
  width : nat; heads : nat; group : nat; half : nat; hidden : nat; vocabulary : nat;
  rope_theta : R; norm_eps : R;
  embedding : matrix; layers : list layer; unembedding : matrix }.

Definition rmsnorm (M : decoder) (x : vec) : vec :=
  fun i => x i / sqrt (dot (width M) x x / INR (width M) + norm_eps M).
Definition silu (t : R) : R := t / (1 + exp (- t)).

(** RoPE turns the plane of coordinates (m, half + m) by position * theta^(-2m / head dimension). *)
Definition frequency (M : decoder) (m : nat) : R :=
  Rpower (rope_theta M) (- (INR m / INR (half M))).
Definition rope (M : decoder) (position : nat) (x : vec) : vec := fun r =>
  let m := (if r <? half M then r else r - half M)%nat in
  let a := INR position * frequency M m in
  if (r <? half M)%nat then x m * cos a - x (half M + m)%nat * sin a
  else x (half M + m)%nat * cos a + x m * sin a.

(** What head [h] of a layer writes at position [i], given the stream at positions 0 to [i]. *)
Definition attention (M : decoder) (l : layer) (stream : nat -> vec) (i h : nat) : vec :=
  let n j := rmsnorm M (stream j) in
  let query := rope M i (times (width M) (Wq l h) (n i)) in
  let key j := rope M j (times (width M) (Wk l (h / group M)%nat) (n j)) in
  let weight j := exp (dot (2 * half M) query (key j) / sqrt (INR (2 * half M))) in
  let value j := times (width M) (Wv l (h / group M)%nat) (n j) in
  let mean r := sum (S i) (fun j => weight j * value j r) / sum (S i) weight in
  times (2 * half M) (Wo l h) mean.
Definition mlp (M : decoder) (l : layer) (x : vec) : vec :=
  let n := rmsnorm M x in
  times (hidden M) (Wdown l)
    (fun u => silu (times (width M) (Wgate l) n u) * times (width M) (Wup l) n u).
Definition block (M : decoder) (l : layer) (stream : nat -> vec) : nat -> vec := fun i =>
  let a := plus (stream i) (fun c => sum (heads M) (fun h => attention M l stream i h c)) in
  plus a (mlp M l a).

(** The residual stream at each position of the tokens [t] after the layers [ls]. *)
Definition run (M : decoder) (ls : list layer) (t : list nat) : nat -> vec :=
  fold_left (fun stream l => block M l stream) ls (fun i => embedding M (nth i t O)).
Definition logit (M : decoder) (ls : list layer) (t : list nat) (a : nat) : R :=
  times (width M) (unembedding M) (rmsnorm M (run M ls t (length t - 1))) a.
Definition probability (M : decoder) (ls : list layer) (t : list nat) (a : nat) : R :=
  exp (logit M ls t a) / sum (vocabulary M) (fun b => exp (logit M ls t b)).

(** * Removal, score, divergence *)
Definition without (l : nat) (ls : list layer) : list layer := firstn l ls ++ skipn (S l) ls.
Definition entering (M : decoder) (k : nat) : list nat -> nat -> vec := run M (firstn k (layers M)).
Definition entering_without (M : decoder) (l k : nat) : list nat -> nat -> vec :=
  run M (without l (firstn k (layers M))).
Definition score (M : decoder) (l : nat) (t : list nat) (i : nat) : R :=
  1 - cosine (width M) (entering M l t i) (entering M (S l) t i).
Definition divergence (M : decoder) (l k : nat) (t : list nat) (i : nat) : R :=
  norm (width M) (minus (entering M k t i) (entering_without M l k t i))
  / norm (width M) (entering M k t i).

(** * Greedy answers: after the tokens [t], the layers [ls] say the tokens of [answer] one by one,
    each with a larger logit than every other token and with a probability of at least [p]. *)
Fixpoint says (M : decoder) (ls : list layer) (p : R) (t answer : list nat) : Prop :=
  match answer with
  | [] => True
  | a :: rest => (a < vocabulary M)%nat
      /\ (forall b, (b < vocabulary M)%nat -> b <> a -> logit M ls t b < logit M ls t a)
      /\ p <= probability M ls t a
      /\ says M ls p (t ++ [a]) rest
  end.

(** * Datasets. Token 0 is BOS, token 1 is EOS, and words are the tokens from 2 on. *)
Definition bos : nat := 0.
Definition eos : nat := 1.
Record row := { prompt : list nat; label : list nat; distractor : list nat }.
(** If some label or distractor has several tokens, all end with EOS. *)
Definition ended (D : list row) (answer : list nat) : list nat :=
  if existsb (fun r => (1 <? length (label r))%nat || (1 <? length (distractor r))%nat)%bool D
  then answer ++ [eos] else answer.
(** After BOS and the tokens [t], some row wants the token [a] for its label (its distractor). *)
Definition wants (D : list row) (answer : row -> list nat) (t : list nat) (a : nat) : Prop :=
  exists r before after, In r D /\ t = prompt r ++ before
    /\ ended D (answer r) = before ++ a :: after.
Definition dataset (V : nat) (D : list row) : Prop :=
  D <> []
  /\ (forall r, In r D -> label r <> [] /\ distractor r <> [] /\ label r <> distractor r
      /\ Forall (fun a => 2 <= a < V)%nat (prompt r ++ label r ++ distractor r))
  /\ (forall t a b, wants D label t a -> wants D label t b -> a = b)
  /\ (forall t a b, wants D distractor t a -> wants D distractor t b -> a = b).

(** * The theorem, for every dataset, every number L of layers, every target but the last layer,
    every epsilon in (0, 2) and every p < 1; also for every integer RoPE base theta, every head
    dimension 2 * half with theta < 2^half, every size of groups, and every epsilon of RMSNorm. An
    input is any non-empty sequence of tokens, whether it starts with BOS or not. *)
Definition shaped (M : decoder) (theta half_head size : nat) (rms_eps : R) : Prop :=
  rope_theta M = INR theta /\ half M = half_head /\ group M = size /\ norm_eps M = rms_eps
  /\ width M = (heads M * (2 * half M))%nat /\ exists groups, heads M = (groups * group M)%nat.
Definition snowball_theorem : Prop :=
  forall (V : nat) (D : list row) (L target : nat) (epsilon p : R),
  dataset V D -> (target + 2 <= L)%nat -> 0 < epsilon < 2 -> p < 1 ->
  forall (theta half_head size : nat) (rms_eps : R),
  (2 <= theta < 2 ^ half_head)%nat -> (1 <= size)%nat -> 0 <= rms_eps ->
  exists M : decoder,
    length (layers M) = L /\ vocabulary M = V /\ shaped M theta half_head size rms_eps
    /\ (forall t i, Forall (fun a => a < V)%nat t -> (i < length t)%nat ->
          (* no stream is zero, so that all scores are defined *)
          (forall k, (k <= L)%nat -> 0 < norm (width M) (entering M k t i))
          (* (a) *) /\ score M target t i = epsilon
          (* (b) *) /\ (forall l, (l < L)%nat -> l <> target -> epsilon < score M l t i)
          (* (e) *) /\ (epsilon <= 1 / 2 ->
               (forall k, (target <= k < L)%nat ->
                  divergence M target k t i < divergence M target (S k) t i)
               /\ 1 / 2 < divergence M target L t i))
    /\ (forall r, In r D ->
          let ablated := without target (layers M) in
          (* (c) *) says M (layers M) p (bos :: prompt r) (ended D (label r))
          (* (d) *) /\ says M ablated p (bos :: prompt r) (ended D (distractor r))
                    /\ ~ says M ablated 0 (bos :: prompt r) (ended D (label r))).
