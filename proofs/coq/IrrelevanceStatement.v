(** Theorem 4, stated over the definitions of [Statement.v]: when a layer is irrelevant. *)
From Coq Require Import Reals List Arith.
Import ListNotations.
From Snowball Require Import Statement.
Open Scope R_scope.

(** Two streams over [n] positions are within [r] of each other, at each position. *)
Definition near (M : decoder) (n : nat) (r : R) (s s' : nat -> vec) : Prop :=
  forall i, (i < n)%nat -> norm (width M) (minus (s i) (s' i)) <= r.

(** [K] is a Lipschitz constant of a layer, and of the final norm, on the tube of radius [r] around
    the stream [h]. *)
Definition layer_lipschitz (M : decoder) (l : layer) (n : nat) (h : nat -> vec) (r K : R) : Prop :=
  forall s s' rho, near M n r s h -> near M n r s' h -> near M n rho s s' ->
  near M n (K * rho) (block M l s) (block M l s').
Definition norm_lipschitz (M : decoder) (h : vec) (r K : R) : Prop :=
  0 <= K /\ forall x x', norm (width M) (minus x h) <= r -> norm (width M) (minus x' h) <= r ->
  norm (width M) (minus (rmsnorm M x) (rmsnorm M x')) <= K * norm (width M) (minus x x').

(** Tubes around the run on the tokens [t] that hold the run without layer [l]: their radii [r], and
    Lipschitz constants [K] of all later layers and, at the last token, of the final norm. *)
Definition tubes (M : decoder) (l : nat) (t : list nat) (r K : nat -> R) : Prop :=
  let L := length (layers M) in
  near M (length t) (r (S l)) (entering M l t) (entering M (S l) t)
  /\ (forall k later, (l < k)%nat -> nth_error (layers M) k = Some later ->
        layer_lipschitz M later (length t) (entering M k t) (r k) (K k) /\ r (S k) = K k * r k)
  /\ norm_lipschitz M (entering M L t (length t - 1)) (r L) (K L).
(** How far the difference of the logits of two tokens can move. *)
Definition movement (M : decoder) (r K : nat -> R) (a b : nat) : R :=
  let L := length (layers M) in
  norm (width M) (minus (unembedding M a) (unembedding M b)) * (K L * r L).

(** After the tokens [t], the token [a] leads all others by more than that. *)
Definition safe (M : decoder) (l : nat) (t : list nat) (a : nat) : Prop :=
  exists r K, tubes M l t r K /\ forall b, (b < vocabulary M)%nat -> b <> a ->
    movement M r K a b < logit M (layers M) t a - logit M (layers M) t b.
(** If that is so wherever a token of an answer is decided, the removal of [l] does not change the
    answer. *)
Definition irrelevance_theorem : Prop :=
  forall (M : decoder) (l : nat) (t answer : list nat),
  (l < length (layers M))%nat -> t <> [] ->
  says M (layers M) 0 t answer ->
  (forall before a after, answer = before ++ a :: after -> safe M l (t ++ before) a) ->
  says M (without l (layers M)) 0 t answer.

(** Multiple choice: the log-likelihood of a choice moves by at most the sum of what differences of
    logits move by at each of its tokens. So a choice that leads by more stays ahead. *)
Fixpoint log_likelihood (M : decoder) (ls : list layer) (t answer : list nat) : R :=
  match answer with
  | [] => 0
  | a :: rest => ln (probability M ls t a) + log_likelihood M ls (t ++ [a]) rest
  end.
Fixpoint moves_at_most (M : decoder) (l : nat) (t answer : list nat) (m : R) : Prop :=
  match answer with
  | [] => 0 <= m
  | a :: rest => (a < vocabulary M)%nat /\ exists r K m', tubes M l t r K
      /\ (forall b, (b < vocabulary M)%nat -> movement M r K a b <= m')
      /\ moves_at_most M l (t ++ [a]) rest (m - m')
  end.
Definition choices_theorem : Prop :=
  forall (M : decoder) (l : nat) (t right wrong : list nat) (m m' : R),
  (l < length (layers M))%nat -> t <> [] ->
  moves_at_most M l t right m -> moves_at_most M l t wrong m' ->
  log_likelihood M (layers M) t wrong + m' < log_likelihood M (layers M) t right - m ->
  log_likelihood M (without l (layers M)) t wrong < log_likelihood M (without l (layers M)) t right.
