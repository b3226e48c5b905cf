(** The decoder of the constructions, and its stream in closed form.

    Coordinates: 0 constant, 1 and 2 filler, then the switches, then one for each token (the code),
    for each node (the context: how much of the node is found in the input), and for each token (the
    answer). Every layer steers by one head: it turns the filler and multiplies one switch. The last
    layer also has heads that copy tokens, and units that recall answers. *)
From Coq Require Import Reals Lra Lia List Arith Psatz FunctionalExtensionality.
Import ListNotations.
From Snowball Require Import Statement Vectors Kernel.
Open Scope R_scope.

(** What a theorem chooses: sizes, and what each layer steers. *)
Record frame := {
  V : nat; head_half : nat; theta : nat; rms_eps : R; group_size : nat;
  U : R; switches : nat; start : nat -> R;  (* sizes of the filler, and of each switch at the start *)
  which : nat -> nat; gain : nat -> R; angle : nat -> R;  (* of each layer *)
  energy : nat -> R; last : nat;  (* squared norm of the switches that enter a layer; the last layer *)
  doubt : R  (* no right token shall have a probability below 1 - doubt *) }.
(** And what follows from the nodes that the last layer answers. *)
Record parameters := {
  frame_of :> frame;
  nodes : nat; side : nat -> nat -> R; node : nat -> list nat; answer : nat -> nat; longest : nat;
  spare_width : nat; spare_heads : nat;  (* coordinates and heads that do nothing *)
  coldness : R; kappa : R; zeta : R; eta : R; K : R }.

Definition zero : vec := fun _ => 0.

Section Model.
Variable P : parameters.
Notation V := (V P). Notation n := (nodes P). Notation N := (longest P). Notation hd := (head_half P).
Notation U := (U P). Notation m := (switches P). Notation ang := (angle P).

Definition W : nat := V + spare_width P.
Definition d : nat := 3 + (m + (V + (n + W))).
Definition C : R := U * U + 2.
(** The norm (as RMSNorm takes it) of every token that enters layer [l]. *)
Definition rho (l : nat) : R := sqrt ((C + energy P l) / INR d + rms_eps P).

Definition state (A : R) (s : nat -> R) (k : nat) (context result : vec) : vec := fun c =>
  match c with
  | 0 => 1 | 1 => U * cos A | 2 => U * sin A
  | S (S (S c)) =>
      if (c <? m)%nat then s c
      else if (c <? m + V)%nat then (if (c - m =? k)%nat then 1 else 0)
      else if (c <? m + V + n)%nat then context (c - (m + V))%nat else result (c - (m + V + n))%nat
  end.
(** The place of the code of a token, of the context of a node, of the answer of a token. *)
Definition code (k : nat) : nat := 3 + (m + k).
Definition seen (u : nat) : nat := 3 + (m + (V + u)).
Definition told (a : nat) : nat := 3 + (m + (V + (n + a))).

Definition freq (m : nat) : R := Rpower (INR (theta P)) (- (INR m / INR hd)).
Definition query_row (D r : nat) : R :=
  if (r <? 2)%nat then cos (INR D * freq r)
  else if ((hd <=? r) && (r <? hd + 2))%nat%bool then - sin (INR D * freq (r - hd)) else 0.
Definition key_row (r : nat) : R := if (r <? 2)%nat then 1 else 0.
Definition steer_value (l r : nat) : vec :=
  match r with
  | 0 => only 1 (rho l) | 1 => only 2 (rho l) | 2 => only (3 + which P l) (rho l) | _ => zero
  end.
Definition steer_out (l c : nat) : vec := fun r =>
  match c, r with
  | 1, 0 => cos (ang l) - 1 | 1, 1 => - sin (ang l)
  | 2, 0 => sin (ang l) | 2, 1 => cos (ang l) - 1
  | S (S (S j)), 2 => if (j =? which P l)%nat then gain P l - 1 else 0
  | _, _ => 0
  end.
Definition moved (s : nat -> R) (l : nat) : nat
  -> R := fun j => if (j =? which P l)%nat then gain P l * s j else s j.
Definition switch_row (u : nat) : vec := fun c =>
  match c with S (S (S j)) => if (j <? m)%nat then kappa P * side P u j else 0 | _ => 0 end.
(** The token of node [u] at distance [D] from its end. *)
Definition wanted (u D : nat) : nat := nth (length (node P u) - S D) (node P u) O.

Definition lay1 (l : nat) : layer :=
  let is_last := (l =? last P)%nat in {|
  Wq h := fun r => match h with O => zero
    | S h => only 0 (rho l * (coldness P * sqrt (INR (2 * hd)) * query_row (h mod N) r)) end;
  Wk h := fun r => only 0 (rho l * key_row r);
  Wv h := fun r => match h with O => steer_value l r
    | S h => if (r =? 0)%nat then only (code (wanted (h / N) (h mod N))) (rho l) else zero end;
  Wo h := fun c => match h with O => steer_out l c
    | S h => if (is_last && (h / N <? n) && (h mod N <? length (node P (h / N))) && (c =? seen
      (h / N)))%nat%bool
             then only 0 (zeta P) else zero end;
  Wgate u := plus (plus (only (seen u) (kappa P / zeta P)) (switch_row u))
                  (only 0 (- (kappa P * (INR (length (node P u)) - 1 / 2 + INR m))));
  Wup u := only 0 1;
  Wdown c := fun u => if (is_last && (c =? told (answer P u)))%nat%bool then eta P else 0 |}.

Definition model1 : decoder := {|
  width := d; heads := S (n * N + spare_heads P); group := 1; half := hd; hidden := n; vocabulary := V;
  rope_theta := INR (theta P); norm_eps := rms_eps P;
  embedding k := state 0 (start P) k zero zero;
  layers := map lay1 (seq 0 (S (last P)));
  unembedding a := only (told a) (K P) |}.

(** * Products of states *)
Lemma d_pos : 0 < INR d.
Proof. apply lt_0_INR. unfold d. lia. Qed.
Lemma C_pos : 0 < C.
Proof. unfold C. nra. Qed.

Lemma at_switch A s k x y j : (j < m)%nat -> state A s k x y (3 + j)%nat = s j.
Proof. intros H. cbn [state Nat.add]. destruct (Nat.ltb_spec j m); [auto|lia]. Qed.
Lemma at_code A s k x y v : (v < V)%nat -> state A s k x y (code v) = if (v =? k)%nat then 1 else 0.
Proof.
  intros H. unfold code. cbn [state Nat.add]. destruct (Nat.ltb_spec (m + v) m); [lia|].
  destruct (Nat.ltb_spec (m + v) (m + V)); [|lia]. replace (m + v - m)%nat with v by lia. auto.
Qed.
Lemma at_seen A s k x y u : (u < n)%nat -> state A s k x y (seen u) = x u.
Proof.
  intros H. unfold seen. cbn [state Nat.add]. destruct (Nat.ltb_spec (m + (V + u)) m); [lia|].
  destruct (Nat.ltb_spec (m + (V + u)) (m + V)); [lia|].
  destruct (Nat.ltb_spec (m + (V + u)) (m + V + n)); [|lia].
  f_equal. lia.
Qed.
Lemma at_told A s k x y a : state A s k x y (told a) = y a.
Proof.
  unfold told. cbn [state Nat.add]. destruct (Nat.ltb_spec (m + (V + (n + a))) m); [lia|].
  destruct (Nat.ltb_spec (m + (V + (n + a))) (m + V)); [lia|].
  destruct (Nat.ltb_spec (m + (V + (n + a))) (m + V + n)); [lia|].
  f_equal. lia.
Qed.
Lemma dot_state A s k x y A' s' x' y' : (k < V)%nat ->
  dot d (state A s k x y) (state A' s' k x' y')
  = 2 + U * U * cos (A - A') + dot m s s' + dot n x x' + dot W y y'.
Proof.
  intros Hk. unfold dot, d. rewrite !sum_split, cos_minus.
  rewrite (sum_ext m _ (fun i => s i * s' i)) by (intros; rewrite !at_switch by auto; auto).
  rewrite (sum_one V _ k Hk).
  - fold (code k). rewrite !at_code, Nat.eqb_refl by auto.
    rewrite (sum_ext n _ (fun i => x i * x' i)) by (intros; fold (seen i); rewrite !at_seen by auto; auto).
    rewrite (sum_ext W _ (fun i => y i * y' i)) by (intros; fold (told i); rewrite !at_told by auto; auto).
    simpl. ring.
  - intros j Hj Hne. fold (code j). rewrite !at_code by auto. destruct (Nat.eqb_spec j k); [congruence|ring].
Qed.
Lemma dot_zero m x : dot m zero x = 0.
Proof. apply sum_zero; intros; unfold zero; ring. Qed.
Lemma self_state A s k x y : (k < V)%nat ->
  dot d (state A s k x y) (state A s k x y) = C + dot m s s + (dot n x x + dot W y y).
Proof. intros. rewrite dot_state by auto. unfold C. rewrite Rminus_diag_eq, cos_0 by auto. ring. Qed.

Hypotheses (Heps : 0 <= rms_eps P) (Htheta : (2 <= theta P < 2 ^ hd)%nat) (Hz : 0 < zeta P)
  (Hwhich : forall l, (which P l < m)%nat) (Henergy : forall l, 0 <= energy P l)
  (Hnode : forall u, (u < n)%nat -> (0 < length (node P u) <= N)%nat /\ Forall (fun a => a < V)%nat (node P u)).

Lemma half_2 : (2 <= hd)%nat.
Proof. destruct hd as [|[|]]; simpl in Htheta; lia. Qed.

Lemma rho_pos l : 0 < rho l.
Proof.
  pose proof C_pos. pose proof d_pos. unfold rho. apply sqrt_lt_R0.
  assert (0 < (C + energy P l) / INR d) by (apply Rdiv_lt_0_compat; auto; pose proof (Henergy l); lra). lra.
Qed.
(** RMSNorm divides every token that enters layer [l] by [rho l]. *)
Lemma normed A s k l i c : (k < V)%nat -> dot m s s = energy P l -> (i < d)%nat ->
  dot d (only i (rho l * c)) (rmsnorm model1 (state A s k zero zero)) = c * state A s k zero zero i.
Proof.
  intros Hk Hs Hi. unfold rmsnorm. cbn [width norm_eps model1].
  rewrite dot_divided, dot_only, self_state, !dot_zero, Hs by auto.
  replace (C + energy P l + (0 + 0)) with (C + energy P l) by ring. fold (rho l). pose proof (rho_pos l).
  field. lra.
Qed.

(** * Attention *)
(** A head whose values are the same at all positions writes as if there were one position. *)
Lemma attention_const M l stream i h val : (forall j r, (j <= i)%nat -> (r < 2 * half M)%nat ->
    times (width M) (Wv l (h / group M)%nat) (rmsnorm M (stream j)) r = val r) ->
  attention M l stream i h = times (2 * half M) (Wo l h) val.
Proof.
  intros H. unfold attention. apply functional_extensionality. intros c. apply sum_ext. intros r Hr. f_equal.
  set (w := fun j => exp _). rewrite (sum_ext _ _ (fun j => val r * w j)).
  - rewrite sum_scale. field. pose proof (sum_pos (S i) w ltac:(lia) ltac:(intros; apply exp_pos)). lra.
  - intros j Hj. rewrite H by lia. fold (w j). ring.
Qed.

Definition plain (A : R) (s : nat -> R) (token : nat -> nat) : nat
  -> vec := fun i => state A s (token i) zero zero.

Lemma steer_writes A s token l i c : (forall j, token j < V)%nat -> dot m s s = energy P l ->
  attention model1 (lay1 l) (plain A s token) i 0 c =
  match c with
  | 0 => 0 | 1 => U * cos (A + ang l) - U * cos A | 2 => U * sin (A + ang l) - U * sin A
  | S (S (S j)) => if (j =? which P l)%nat then gain P l * s j - s j else 0
  end.
Proof.
  intros Ht Hs. rewrite (attention_const _ _ _ _ _ (fun r => match r with
    | 0 => U * cos A | 1 => U * sin A | 2 => s (which P l) | _ => 0 end)).
  - pose proof half_2. unfold times, dot. cbn [half model1 Wo lay1].
    replace (2 * hd)%nat with (3 + (2 * hd - 3))%nat by lia.
    rewrite sum_split, (sum_zero (2 * hd - 3)) by (intros; simpl; ring).
    simpl sum. rewrite cos_plus, sin_plus. unfold steer_out.
    destruct c as [|[|[|j]]]; simpl; try ring. destruct (Nat.eqb_spec j (which P l)) as [->|]; ring.
  - intros j r _ _. cbn [group model1]. unfold times, plain. cbn [Nat.div Nat.divmod fst Wv lay1 width model1]. pose proof (Hwhich l).
    assert (X : forall c, (c < d)%nat
      -> dot d (only c (rho l)) (rmsnorm model1 (state A s (token j) zero zero)) = state A s
      (token j) zero zero c).
    { intros e He. rewrite <- (Rmult_1_r (rho l)), normed by auto. ring. }
    unfold steer_value. destruct r as [|[|[|]]]; [rewrite X by (unfold d; lia)..|apply dot_zero]; auto.
    apply at_switch; auto.
Qed.

Lemma rope_dot M i j x y : dot (2 * half M) (rope M i x) (rope M j y) = sum (half M) (fun m =>
    (x m * y m + x (half M + m)%nat * y (half M + m)%nat) * cos ((INR i - INR j) * frequency M m)
  - (x (half M + m)%nat * y m - x m * y (half M + m)%nat) * sin ((INR i - INR j) * frequency M m)).
Proof.
  unfold dot. replace (2 * half M)%nat with (half M + half M)%nat by lia. rewrite sum_split, <- sum_plus.
  apply sum_ext. intros m Hm. unfold rope.
  destruct (Nat.ltb_spec m (half M)); [|lia]. destruct (Nat.ltb_spec (half M + m) (half M)); [lia|].
  replace (half M + m - half M)%nat with m by lia.
  replace ((INR i - INR j) * frequency M m) with (INR i * frequency M m - INR j * frequency M m) by ring.
  rewrite cos_minus, sin_minus. ring.
Qed.

(** The weight with which a head for distance [D] at position [i] looks at position [j]. *)
Definition weight (D i j : nat) : R :=
  exp (coldness P * (cos (INR i - INR j - INR D) + cos ((INR i - INR j - INR D) * slow (theta P) hd))).
Definition hits (token : nat -> nat) (u D i j : nat) : R := if (token j =? wanted u D)%nat then 1 else 0.
Definition copied (token : nat -> nat) (u i D : nat) : R :=
  sum (S i) (fun j => weight D i j * hits token u D i j) / sum (S i) (weight D i).
(** How much of node [u] is found before position [i], in tokens. *)
Definition found (token : nat -> nat) (i u : nat) : R :=
  sum N (fun D => if (D <? length (node P u))%nat then copied token u i D else 0).

Section Copy.
Variables (A : R) (s : nat -> R) (token : nat -> nat) (l i u D : nat).
Hypotheses (Ht : forall j, (token j < V)%nat) (Hs : dot m s s = energy P l) (Hu : (u < n)%nat) (HD : (D
  < N)%nat).
Lemma index_div : ((u * N + D) / N = u)%nat.
Proof. rewrite Nat.div_add_l, Nat.div_small by lia. lia. Qed.
Lemma index_mod : ((u * N + D) mod N = D)%nat.
Proof. rewrite Nat.add_comm, Nat.mod_add, Nat.mod_small by lia. reflexivity. Qed.
Lemma query_is r : times d (Wq (lay1 l) (S (u * N + D))) (rmsnorm model1 (plain A s token i)) r
  = coldness P * sqrt (INR (2 * hd)) * query_row D r.
Proof. unfold times, plain. cbn [Wq lay1]. rewrite index_mod, normed by (auto; unfold d; lia). simpl. ring. Qed.
Lemma key_is j r : times d (Wk (lay1 l) (S (u * N + D))) (rmsnorm model1 (plain A s token j)) r = key_row r.
Proof. unfold times, plain. cbn [Wk lay1]. rewrite normed by (auto; unfold d; lia). simpl. ring. Qed.
Lemma wanted_V : (wanted u D < V)%nat.
Proof.
  unfold wanted. destruct (Hnode u Hu) as [L F]. rewrite Forall_forall in F. apply F, nth_In. lia.
Qed.
Lemma value_is j : times d (Wv (lay1 l) (S (u * N + D))) (rmsnorm model1 (plain A s token j)) 0%nat
  = hits token u D i j.
Proof.
  unfold times, plain. cbn [Wv lay1 Nat.eqb]. rewrite index_mod, index_div. pose proof wanted_V.
  rewrite <- (Rmult_1_r (rho l)), normed, at_code by (auto; unfold d, code; lia).
  unfold hits. rewrite Nat.eqb_sym. ring.
Qed.
Lemma freq_0 : freq 0 = 1.
Proof. unfold freq. simpl. unfold Rdiv. rewrite Rmult_0_l, Ropp_0, Rpower_O; auto. apply lt_0_INR; lia. Qed.
Lemma turned x y f : cos (y * f) * cos (x * f) - - sin (y * f) * sin (x * f) = cos ((x - y) * f).
Proof. replace ((x - y) * f) with (x * f - y * f) by ring. rewrite cos_minus. ring. Qed.
Lemma weight_is j : exp (dot (2 * hd)
    (rope model1 i (times d (Wq (lay1 l) (S (u * N + D))) (rmsnorm model1 (plain A s token i))))
    (rope model1 j (times d (Wk (lay1 l) (S (u * N + D))) (rmsnorm model1 (plain A s token j))))
    / sqrt (INR (2 * hd))) = weight D i j.
Proof.
  pose proof half_2 as H2. assert (Hq : 0 < sqrt (INR (2 * hd))) by (apply sqrt_lt_R0, lt_0_INR; lia).
  unfold weight. f_equal. change (2 * hd)%nat with (2 * half model1)%nat at 1. rewrite rope_dot.
  cbn [half model1].
  rewrite (sum_ext _ _ (fun m => coldness P * sqrt (INR (2 * hd)) *
     (if (m <? 2)%nat then cos ((INR i - INR j - INR D) * freq m) else 0))).
  - rewrite sum_scale. replace hd with (2 + (hd - 2))%nat at 2 by lia.
    rewrite sum_split, (sum_zero (hd - 2)) by (intros; reflexivity). cbn [sum Nat.ltb Nat.leb].
    rewrite freq_0. change (freq 1) with (slow (theta P) hd). rewrite !Rmult_1_r. field. lra.
  - intros m Hm. rewrite !query_is, !key_is. change (frequency model1 m) with (freq m). unfold key_row.
    destruct (Nat.ltb_spec (hd + m) 2); [lia|]. unfold query_row. destruct (Nat.ltb_spec m 2).
    + destruct (Nat.ltb_spec (hd + m) 2); [lia|]. destruct (Nat.leb_spec hd (hd + m)); [|lia].
      destruct (Nat.ltb_spec (hd + m) (hd + 2)); [|lia]. cbn [andb].
      replace (hd + m - hd)%nat with m by lia. rewrite <- (turned (INR i - INR j) (INR D)). ring.
    + ring.
Qed.
Lemma copy_writes c : l = last P -> attention model1 (lay1 l) (plain A s token) i (S (u * N + D)) c =
  if ((D <? length (node P u)) && (c =? seen u))%nat%bool then zeta P * copied token u i D else 0.
Proof.
  intros Hl. unfold attention. cbn [half width group model1]. rewrite Nat.div_1_r. unfold times at 1. cbn [Wo lay1].
  rewrite index_mod, index_div, Hl, Nat.eqb_refl, <- Hl.
  replace (u <? n)%nat with true by (symmetry; apply Nat.ltb_lt; auto). cbn [andb].
  destruct ((D <? length (node P u))%nat && (c =? seen u)%nat)%bool; [|apply dot_zero].
  rewrite dot_only by (pose proof half_2; lia). f_equal. unfold copied. f_equal.
  - apply sum_ext. intros j Hj. f_equal; [apply weight_is|apply value_is].
  - apply sum_ext. intros j Hj. apply weight_is.
Qed.
End Copy.

(** * Blocks *)
Lemma sum_first m f : sum (S m) f = f 0%nat + sum m (fun j => f (S j)).
Proof. change (S m) with (1 + m)%nat. rewrite sum_split. simpl. ring. Qed.

Lemma silent_head l h stream i c : l <> last P -> attention model1 (lay1 l) stream i (S h) c = 0.
Proof.
  intros Hl. unfold attention, times at 1. cbn [Wo lay1]. destruct (Nat.eqb_spec l (last P)); [congruence|].
  apply dot_zero.
Qed.
Lemma spare_head l h stream i c : attention model1 (lay1 l) stream i (S (n * N + h)) c = 0.
Proof.
  unfold attention, times at 1. cbn [Wo lay1]. replace ((n * N + h) / N <? n)%nat with false.
  - rewrite Bool.andb_false_r. apply dot_zero.
  - symmetry. apply Nat.ltb_ge. destruct (Nat.eq_dec N 0) as [Z|Z].
    + rewrite Z. destruct n; [lia|]. pose proof (proj1 (Hnode 0 ltac:(lia))). lia.
    + apply Nat.div_le_lower_bound; lia.
Qed.
Lemma silent_mlp l x c : l <> last P -> mlp model1 (lay1 l) x c = 0.
Proof.
  intros Hl. unfold mlp, times at 1, dot. cbn [Wdown lay1]. destruct (Nat.eqb_spec l (last P)); [congruence|].
  apply sum_zero. intros; simpl; ring.
Qed.
(** A layer before the last turns the filler and multiplies a switch. *)
Lemma steer_block1 l A s token : l <> last P -> (forall j, token j < V)%nat -> dot m s s = energy P l ->
  block model1 (lay1 l) (plain A s token) = plain (A + ang l) (moved s l) token.
Proof.
  intros Hl Ht Hs. apply functional_extensionality. intros i. apply functional_extensionality. intros c.
  unfold block, Statement.plus. rewrite silent_mlp by auto. cbn [heads model1]. rewrite sum_first.
  rewrite (sum_zero (n * N + _)) by (intros; apply silent_head; auto). rewrite steer_writes by auto.
  unfold plain, state, moved. pose proof (Hwhich l). destruct c as [|[|[|j]]]; try ring.
  destruct (Nat.eqb_spec j (which P l)) as [->|]; [|ring]. destruct (Nat.ltb_spec (which P l) m); [ring|lia].
Qed.

(** What the last layer leaves at a position whose stream has norm [r] and switches [s] at its MLP. *)
Definition fit (s : nat -> R) (u : nat) : R := dot m (side P u) s - INR m.
Definition gate (r : R) (s : nat -> R) (token : nat -> nat) (i u : nat) : R :=
  kappa P * (found token i u - INR (length (node P u)) + 1 / 2 + fit s u) / r.
Definition result (r : R) (s : nat -> R) (token : nat -> nat) (i a : nat) : R :=
  sum n (fun u => (if (a =? answer P u)%nat then eta P else 0) * (silu (gate r s token i u) * / r)).
Definition context (token : nat -> nat) (i u : nat) : R := zeta P * found token i u.
Definition reading (s : nat -> R) (token : nat -> nat) (i : nat) : R :=
  sqrt ((C + dot m s s + dot n (context token i) (context token i)) / INR d + rms_eps P).
Definition final (A : R) (s : nat -> R) (token : nat -> nat) (i : nat) : vec :=
  state A s (token i) (context token i) (result (reading s token i) s token i).

(** A sum over nodes that reaches one coordinate each. *)
Lemma spread c x : sum n (fun u => if (c =? seen u)%nat then x u else 0)
  = if ((3 + (m + V) <=? c) && (c <? 3 + (m + V + n)))%nat%bool then x (c - (3 + (m + V)))%nat else 0.
Proof.
  destruct (Nat.leb_spec (3 + (m + V)) c), (Nat.ltb_spec c (3 + (m + V + n))); cbn [andb];
    try (apply sum_zero; intros u Hu; unfold seen; destruct (Nat.eqb_spec c (3 + (m + (V + u)))); [lia|auto]).
  rewrite (sum_one n _ (c - (3 + (m + V)))); [|lia|].
  - unfold seen. destruct (Nat.eqb_spec c (3 + (m + (V + (c - (3 + (m + V))))))); [auto|lia].
  - intros u Hu Hne. unfold seen. destruct (Nat.eqb_spec c (3 + (m + (V + u)))); [lia|auto].
Qed.
Lemma reader_attends A s token i : (forall j, token j < V)%nat -> dot m s s = energy P (last P) ->
  Statement.plus (plain A s token i)
    (fun c => sum (S (n * N + spare_heads P)) (fun h => attention model1 (lay1 (last P)) (plain A s token) i h c))
  = state (A + ang (last P)) (moved s (last P)) (token i) (context token i) zero.
Proof.
  intros Ht Hs. apply functional_extensionality. intros c. unfold Statement.plus.
  rewrite sum_first, sum_split, (sum_zero (spare_heads P)), sum_product,
    steer_writes by (auto using spare_head).
  rewrite (sum_ext n _ (fun u => if (c =? seen u)%nat then context token i u else 0)).
  - rewrite spread. pose proof (Hwhich (last P)). unfold plain, state, moved.
    destruct c as [|[|[|c]]]; try (simpl; ring).
    destruct (Nat.leb_spec (3 + (m + V)) (S (S (S c)))), (Nat.ltb_spec (S (S (S c))) (3 + (m + V + n)));
      cbn [andb];
      destruct (Nat.ltb_spec c m), (Nat.eqb_spec c (which P (last P))) as [E|E], (Nat.ltb_spec c (m + V)),
        (Nat.ltb_spec c (m + V + n));
      try lia; unfold zero; try ring.
    replace (S (S (S c)) - (3 + (m + V)))%nat with (c - (m + V))%nat by lia. ring.
  - intros u Hu. unfold context, found. destruct (Nat.eqb_spec c (seen u)) as [E|E].
    + rewrite <- sum_scale. apply sum_ext. intros D HD. rewrite copy_writes by auto.
      destruct (Nat.eqb_spec c (seen u)); [|congruence].
      destruct (D <? length (node P u))%nat; simpl; ring.
    + apply sum_zero. intros D HD. rewrite copy_writes by auto.
      destruct (Nat.eqb_spec c (seen u)); [congruence|]. rewrite Bool.andb_false_r. reflexivity.
Qed.
Lemma dot_switch_row A s k x y u : dot d (switch_row u) (state A s k x y) = kappa P * dot m (side P u) s.
Proof.
  unfold dot at 1. unfold d. rewrite !sum_split. rewrite (sum_ext m _ (fun j => kappa P * (side P u j * s j))).
  - rewrite sum_scale. fold (dot m (side P u) s). simpl sum.
    rewrite !sum_zero; [ring|..]; intros i Hi; cbn [switch_row Nat.add];
      match goal with |- context [(?e <? ?f)%nat] => destruct (Nat.ltb_spec e f); [lia|ring] end.
  - intros j Hj. rewrite at_switch by auto. cbn [switch_row Nat.add]. destruct (Nat.ltb_spec j m); [ring|lia].
Qed.

Lemma reader_block1 A s token : (forall j, token j < V)%nat -> dot m s s = energy P (last P) ->
  block model1 (lay1 (last P)) (plain A s token) = final (A + ang (last P)) (moved s (last P)) token.
Proof.
  intros Ht Hs. apply functional_extensionality. intros i. unfold block. cbn [heads model1].
  rewrite reader_attends by auto.
  set (A' := A + _). set (s' := moved _ _). apply functional_extensionality. intros c. unfold Statement.plus.
  assert (N1 : forall w, dot d w (rmsnorm model1 (state A' s' (token i) (context token i) zero))
    = dot d w (state A' s' (token i) (context token i) zero) / reading s' token i).
  { intros w. unfold rmsnorm. cbn [width norm_eps model1].
    rewrite dot_divided, self_state, dot_zero, Rplus_0_r by auto. reflexivity. }
  unfold mlp, times. cbn [width hidden model1 Wgate Wup Wdown lay1]. rewrite Nat.eqb_refl. cbn [andb].
  unfold dot at 1.
  rewrite (sum_ext n _ (fun u => (if (c =? told (answer P u))%nat then eta P else 0)
     * (silu (gate (reading s' token i) s' token i u) * / reading s' token i))).
  - assert (Z : (c < told 0)%nat -> sum n (fun u => (if (c =? told (answer P u))%nat then eta P else 0)
       * (silu (gate (reading s' token i) s' token i u) * / reading s' token i)) = 0).
    { intros Hc. apply sum_zero. intros u Hu. unfold told in *.
      destruct (Nat.eqb_spec c (3 + (m + (V + (n + answer P u))))); [lia|ring]. }
    destruct (Nat.lt_ge_cases c (told 0)) as [Hc|Hc].
    + rewrite Z, Rplus_0_r by auto. unfold final, state. destruct c as [|[|[|c]]]; auto. unfold told in Hc.
      destruct (Nat.ltb_spec c m); auto. destruct (Nat.ltb_spec c (m + V)); auto.
      destruct (Nat.ltb_spec c (m + V + n)); [auto|lia].
    + replace c with (told (c - told 0)) by (unfold told in *; lia). unfold final. rewrite !at_told.
      unfold zero, result.
      rewrite Rplus_0_l. apply sum_ext. intros u Hu. f_equal. unfold told in *.
      destruct (Nat.eqb_spec (3 + (m + (V + (n + (c - (3 + (m + (V + (n + 0)))))))))  (3 + (m + (V + (n
        + answer P u))))) as [E1|E1],
        (Nat.eqb_spec (c - (3 + (m + (V + (n + 0))))) (answer P u)) as [E2|E2]; auto; lia.
  - intros u Hu. rewrite !N1, !dot_plus, dot_switch_row, !dot_only by (unfold d, seen; lia).
    rewrite at_seen by auto. f_equal. f_equal.
    + f_equal. unfold gate, context, fit. cbn [state]. unfold Rdiv. f_equal. field. lra.
    + cbn [state]. unfold Rdiv. ring.
Qed.

(** * Groups: only the first head of each group writes. *)
Notation size := (group_size P).
Definition lay (l : nat) : layer := {|
  Wq h := Wq (lay1 l) (h / size)%nat;
  Wo h := if (h mod size =? 0)%nat then Wo (lay1 l) (h / size)%nat else fun _ => zero;
  Wk := Wk (lay1 l); Wv := Wv (lay1 l); Wgate := Wgate (lay1 l); Wup := Wup (lay1 l); Wdown := Wdown (lay1 l) |}.
Definition model : decoder := {|
  width := d; heads := S (n * N + spare_heads P) * size; group := size; half := hd; hidden := n; vocabulary := V;
  rope_theta := INR (theta P); norm_eps := rms_eps P;
  embedding k := state 0 (start P) k zero zero;
  layers := map lay (seq 0 (S (last P)));
  unembedding a := only (told a) (K P) |}.
Hypothesis (Hsize : (1 <= size)%nat).
Lemma first_of_group l stream i q : attention model (lay l) stream i (q * size) = attention model1 (lay1 l) stream i q.
Proof.
  unfold attention. cbn [group model1 model Wq Wk Wv Wo lay]. rewrite Nat.div_1_r, Nat.mod_mul, Nat.div_mul by lia. reflexivity.
Qed.
Lemma rest_of_group l stream i q j c : (0 < j < size)%nat -> attention model (lay l) stream i (q * size + j) c = 0.
Proof.
  intros Hj. unfold attention. unfold times at 1. cbn [Wo lay]. rewrite (Nat.add_comm (q * size)), Nat.mod_add, Nat.mod_small by lia.
  destruct (Nat.eqb_spec j 0); [lia|]. apply dot_zero.
Qed.
Lemma grouped l stream : block model (lay l) stream = block model1 (lay1 l) stream.
Proof.
  apply functional_extensionality. intros i. unfold block.
  assert (E : (fun c => sum (heads model) (fun h => attention model (lay l) stream i h c))
    = fun c => sum (heads model1) (fun h => attention model1 (lay1 l) stream i h c)).
  { apply functional_extensionality. intros c. cbn [heads model model1]. rewrite sum_product. apply sum_ext. intros q _.
    rewrite (sum_one size _ 0).
    - rewrite Nat.add_0_r, first_of_group. reflexivity.
    - lia.
    - intros j Hj Hne. apply rest_of_group. lia. }
  rewrite E. reflexivity.
Qed.
Lemma steer_block l A s token : l <> last P -> (forall j, token j < V)%nat -> dot m s s = energy P l ->
  block model (lay l) (plain A s token) = plain (A + ang l) (moved s l) token.
Proof. intros. rewrite grouped. apply steer_block1; auto. Qed.
Lemma reader_block A s token : (forall j, token j < V)%nat -> dot m s s = energy P (last P) ->
  block model (lay (last P)) (plain A s token) = final (A + ang (last P)) (moved s (last P)) token.
Proof. intros. rewrite grouped. apply reader_block1; auto. Qed.

End Model.
