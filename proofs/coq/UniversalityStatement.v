(** Theorem 2 (ablation universality), stated over the definitions of [Statement.v]: any scores with
    any behaviour under every removal. [Universality.v] proves both forms. *)
From Coq Require Import Reals List Arith.
Import ListNotations.
From Snowball Require Import Statement.
Open Scope R_scope.

(** Which layers are present: a boolean for each layer but the last, which always is. *)
Fixpoint select (present : list bool) (ls : list layer) : list layer :=
  match present, ls with
  | true :: present', l :: ls' => l :: select present' ls'
  | false :: present', _ :: ls' => select present' ls'
  | _, _ => ls
  end.
Definition entering_with (M : decoder) (present : list bool) (k : nat) : list nat -> nat -> vec :=
  run M (select present (firstn k (layers M))).
Definition score_with (M : decoder) (present : list bool) (l : nat) (t : list nat) (i : nat) : R :=
  1 - cosine (width M) (entering_with M present l t i) (entering_with M present (S l) t i).

(** Questions with the answers that are wanted; tokens other than BOS. No two questions want
    different tokens after the same sequence. *)
Definition questions := list (list nat * list nat).
Definition asks (Q : questions) (t : list nat) (a : nat) : Prop :=
  exists question before after, In (question, before ++ a :: after) Q /\ t = question ++ before.
Definition consistent (V : nat) (Q : questions) : Prop :=
  (forall question answer, In (question, answer) Q ->
     Forall (fun a => 0 < a < V)%nat (question ++ answer))
  /\ (forall t a b, asks Q t a -> asks Q t b -> a = b).

(** A decoder of [L] layers over [V] tokens that scores [c], the last layer within [delta], and
    answers [Q present], whatever layers are present. *)
Definition behaves (M : decoder) (V L : nat) (c : nat -> R) (delta p : R)
    (Q : list bool -> questions) : Prop :=
  length (layers M) = L /\ vocabulary M = V
  /\ forall present, length present = (L - 1)%nat ->
      (forall t i, Forall (fun a => a < V)%nat t -> (i < length t)%nat ->
         (forall k, (k <= L)%nat -> 0 < norm (width M) (entering_with M present k t i))
         /\ (forall l, (l < L - 1)%nat -> nth l present false = true ->
               score_with M present l t i = c l)
         /\ Rabs (score_with M present (L - 1) t i - c (L - 1)%nat) < delta)
      /\ (forall question answer, In (question, answer) (Q present) ->
            says M (select present (layers M)) p (bos :: question) answer).

(** The general form: for each set of layers that are present, questions and answers of its own. *)
Definition behaviours_theorem : Prop :=
  forall (V L : nat) (c : nat -> R) (delta p : R) (Q : list bool -> questions),
  (0 < V)%nat -> (0 < L)%nat -> (forall l, (l < L)%nat -> 0 < c l < 2) -> 0 < delta -> p < 1 ->
  (forall present, length present = (L - 1)%nat -> consistent V (Q present)) ->
  forall (theta half_head size : nat) (rms_eps : R),
  (2 <= theta < 2 ^ half_head)%nat -> (1 <= size)%nat -> 0 <= rms_eps ->
  exists M : decoder, shaped M theta half_head size rms_eps /\ behaves M V L c delta p Q.

(** The form of the prose: a Boolean function of presence for each row of a dataset decides between
    label and distractor. Where one row's label and another's distractor want different tokens after
    the same sequence, the rows have the same function. *)
Definition wants_of (D : list row) (r : row) (answer : list nat) (t : list nat) (a : nat) : Prop :=
  exists before after, t = prompt r ++ before /\ ended D answer = before ++ a :: after.
Definition chosen (D : list row) (f : row -> list bool -> bool) (present : list bool) : questions :=
  map (fun r => (prompt r, ended D (if f r present then label r else distractor r))) D.
Definition universality_theorem : Prop :=
  forall (V : nat) (D : list row) (L : nat) (c : nat -> R) (delta p : R)
    (f : row -> list bool -> bool),
  dataset V D -> (0 < L)%nat -> (forall l, (l < L)%nat -> 0 < c l < 2) -> 0 < delta -> p < 1 ->
  (forall r r' t a b present, In r D -> In r' D -> wants_of D r (label r) t a ->
     wants_of D r' (distractor r') t b -> a <> b -> f r present = f r' present) ->
  forall (theta half_head size : nat) (rms_eps : R),
  (2 <= theta < 2 ^ half_head)%nat -> (1 <= size)%nat -> 0 <= rms_eps ->
  exists M : decoder, shaped M theta half_head size rms_eps /\ behaves M V L c delta p (chosen D f).

(** A consequence, Theorem 1 with more: the target decides every answer, whatever other layers are
    present besides. *)
Definition robust_theorem : Prop :=
  forall (V : nat) (D : list row) (L target : nat) (epsilon p : R),
  dataset V D -> (target + 2 <= L)%nat -> 0 < epsilon < 2 -> p < 1 ->
  forall (theta half_head size : nat) (rms_eps : R),
  (2 <= theta < 2 ^ half_head)%nat -> (1 <= size)%nat -> 0 <= rms_eps ->
  exists M : decoder, shaped M theta half_head size rms_eps
    /\ length (layers M) = L /\ vocabulary M = V
    /\ (forall t i, Forall (fun a => a < V)%nat t -> (i < length t)%nat ->
          (forall k, (k <= L)%nat -> 0 < norm (width M) (entering M k t i))
          /\ score M target t i = epsilon
          /\ forall l, (l < L)%nat -> l <> target -> epsilon < score M l t i)
    /\ (forall present r, length present = (L - 1)%nat -> In r D ->
          says M (select present (layers M)) p (bos :: prompt r)
            (ended D (if nth target present false then label r else distractor r))).

(** Observational blindness: two decoders of the same sizes with the same streams and logits at
    every input. The first needs layer [a], the second layer [b], and neither anything else. *)
Definition blindness_theorem : Prop :=
  forall (V : nat) (D : list row) (L a b : nat) (c : nat -> R) (delta p : R),
  dataset V D -> (a < L - 1)%nat -> (b < L - 1)%nat -> (forall l, (l < L)%nat -> 0 < c l < 2) ->
  0 < delta -> p < 1 ->
  forall (theta half_head size : nat) (rms_eps : R),
  (2 <= theta < 2 ^ half_head)%nat -> (1 <= size)%nat -> 0 <= rms_eps ->
  exists M M' : decoder,
    shaped M theta half_head size rms_eps /\ shaped M' theta half_head size rms_eps
    /\ heads M = heads M' /\ hidden M = hidden M'
    /\ behaves M V L c delta p (chosen D (fun _ present => nth a present false))
    /\ behaves M' V L c delta p (chosen D (fun _ present => nth b present false))
    /\ forall t, Forall (fun x => x < V)%nat t ->
        (forall k i, (k <= L)%nat -> entering M k t i = entering M' k t i)
        /\ forall x, (x < V)%nat -> logit M (layers M) t x = logit M' (layers M') t x.
