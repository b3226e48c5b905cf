(** From nodes to a decoder that answers them: all sizes that remain are chosen, and exist. *)
From Coq Require Import Reals Lra Lia List Arith Psatz ZArith.
Import ListNotations.
From Snowball Require Import Statement Vectors Kernel Model Runs Recall Nodes.
Open Scope R_scope.

Lemma small_square A p : 0 <= A -> 0 < p -> exists z, 0 < z /\ A * (z * z) <= p.
Proof.
  intros HA Hp. exists (Rmin 1 (p / (1 + A))).
  pose proof (Rmin_l 1 (p / (1 + A))). pose proof (Rmin_r 1 (p / (1 + A))).
  assert (0 < p / (1 + A)) by (apply Rdiv_lt_0_compat; lra).
  assert (0 < Rmin 1 (p / (1 + A))) by (apply Rmin_pos; lra). split; auto. set (z := Rmin _ _) in *.
  apply Rle_trans with (A * (p / (1 + A))); [apply Rmult_le_compat_l; nra|].
  apply (Rmult_le_reg_r (1 + A)); [lra|]. unfold Rdiv. rewrite !Rmult_assoc, Rinv_l by lra. nra.
Qed.

Lemma copy_sharp (P : parameters) gap : (2 <= theta P < 2 ^ head_half P)%nat -> (0 < longest P)%nat
  -> 0 < gap ->
  (forall x : Z, x <> 0%Z -> (Z.abs x <= Z.of_nat (longest P))%Z
    -> cos (IZR x) + cos (IZR x * slow (theta P) (head_half P)) <= 2 - gap) ->
  coldness P = 4 * INR (longest P) * INR (longest P) / gap ->
  forall D i, (D <= i)%nat -> (S i <= longest P)%nat ->
    1 - / (4 * INR (longest P)) <= weight P D i (i - D) / sum (S i) (weight P D i).
Proof.
  intros Ht HN Hg Hgap Hc D i HD Hi. set (N := longest P) in *. set (sl := slow (theta P) (head_half P)) in *.
  assert (N1 : 1 <= INR N) by (apply (le_INR 1); lia).
  set (z := fun j => coldness P * (cos (INR i - INR j - INR D) + cos ((INR i - INR j - INR D) * sl))).
  assert (c0 : 0 < coldness P) by (rewrite Hc; apply Rdiv_lt_0_compat; nra).
  eapply Rle_trans; [|apply (softmax_lead (S i) z (i - D) (coldness P * gap)); [lia|]].
  - assert (INR (S i) <= INR N) by (apply le_INR; lia). pose proof (exp_pos (- (coldness P * gap))) as E.
    assert (X : exp (- (coldness P * gap)) <= / (4 * INR N * INR N)).
    { rewrite exp_Ropp. apply Rinv_le_contravar; [nra|].
      replace (coldness P * gap) with (4 * INR N * INR N) by (rewrite Hc; field; lra).
      pose proof (exp_linear (4 * INR N * INR N)). lra. }
    assert (INR N * / (4 * INR N * INR N) = / (4 * INR N)) by (field; lra).
    assert (INR (S i) * exp (- (coldness P * gap)) <= INR N * / (4 * INR N * INR N)) by (apply Rmult_le_compat;
      try lra; apply pos_INR). lra.
  - intros j Hj Hne. unfold z. rewrite minus_INR by auto.
    replace (INR i - (INR i - INR D) - INR D) with 0 by ring. rewrite Rmult_0_l, cos_0.
    specialize (Hgap (Z.of_nat i - Z.of_nat j - Z.of_nat D)%Z ltac:(lia) ltac:(lia)).
    rewrite !minus_IZR, <- !INR_IZR_INZ in Hgap. nra.
Qed.

Definition sign (b : bool) : R := if b then 1 else -1.
Definition nth_entry (E : list entry) (u : nat) : entry := nth u E ([], [], 0%nat).
Lemma nth_entry_in E u : (u < length E)%nat -> In (nth_entry E u) E.
Proof. apply nth_In. Qed.

(** Entries that a decoder can answer: tokens of the vocabulary, BOS at the start only, one pattern
    of switches each, and no two that want different tokens. *)
Definition answerable (V m : nat) (E : list entry) : Prop :=
  (forall e, In e E -> length (fst (fst e)) = m /\ (snd e < V)%nat /\ Forall (fun a => a < V)%nat (snd (fst e))
     /\ exists w, snd (fst e) = 0%nat :: w /\ ~ In 0%nat w)
  /\ forall e e', In e E -> In e' E -> fst e = fst e' -> snd e = snd e'.
(** The units of [P] read the entries [E], by switches of the sizes [ref]. *)
Definition reads (P : parameters) (ref : nat -> R) (E : list entry) : Prop := nodes P = length E
  /\ forall u, (forall j, side P u j = sign (nth j (fst (fst (nth_entry E u))) false) / ref j)
       /\ (node P u, answer P u) = (snd (fst (nth_entry E u)), snd (nth_entry E u)).

Lemma parameters_exist (F : frame) (E : list entry) (ref : nat -> R) (phi : R) :
  answerable (V F) (switches F) E -> 0 <= rms_eps F -> (1 <= group_size F)%nat -> (2 <= theta F < 2 ^ head_half F)%nat -> 0 < doubt F
    -> 0 < phi ->
  (forall l, (which F l < switches F)%nat) -> (forall l, 0 <= energy F l) ->
  exists P, frame_of P = F /\ good P phi /\ reads P ref E
    /\ shaped (model P) (theta F) (head_half F) (group_size F) (rms_eps F).
Proof.
  intros HE Heps Hgroup Ht Hdoubt phi0 Hwhich Henergy. pose proof HE as [Hok _].
  set (n := length E). set (N := S (list_max (map (fun e : entry => length (snd (fst e))) E))).
  assert (N0 : (0 < N)%nat) by (unfold N; lia).
  assert (N1 : forall u, (u < n)%nat -> (length (snd (fst (nth_entry E u))) <= N)%nat).
  { intros u Hu. unfold N. apply le_S.
    pose proof (proj1 (list_max_le (map (fun e : entry => length (snd (fst e))) E) _) (le_n _)) as M.
    rewrite Forall_forall in M. apply M. apply (in_map (fun e : entry => length (snd (fst e)))), nth_entry_in.
    exact Hu. }
  clearbody N. destruct (kernel_gap (theta F) (head_half F) N Ht) as (gap & Hg & Hgap).
  set (m := switches F). set (idle := (3 + m + V F + V F + n)%nat). set (heads := (S (n * N + idle) * group_size F)%nat).
  set (spare := (heads * (2 * head_half F) - idle)%nat). set (d := (3 + (m + (V F + (n + (V F + spare)))))%nat).
  assert (Hd : d = (heads * (2 * head_half F))%nat).
  { assert (1 <= head_half F)%nat by (destruct (head_half F); simpl in Ht; lia).
    assert (idle <= heads * (2 * head_half F))%nat by (unfold heads; nia). unfold d, spare. unfold idle in *.
    lia. }
  set (s2 := energy F (S (last F))). assert (s0 : 0 <= s2) by apply Henergy.
  set (rm := sqrt ((U F * U F + 2 + s2 + phi) / INR d + rms_eps F)).
  set (r0 := sqrt ((U F * U F + 2 + s2) / INR d + rms_eps F)).
  set (kappa := 4 * (2 * INR n + 4) * rm). set (B := kappa * (INR N + 2 * INR m) / r0 / r0).
  pose proof (pos_INR n) as n0. pose proof (pos_INR (V F + spare)) as V0.
  assert (d0 : 0 < INR d) by (apply lt_0_INR; unfold d; lia).
  assert (rm0 : 0 < rm). { apply sqrt_lt_R0.
  assert (0 < (U F * U F + 2 + s2 + phi) / INR d) by (apply Rdiv_lt_0_compat; nra). lra. }
  destruct (small_square (INR n * (INR N * INR N)) (phi / 2)) as (zeta & z0 & Hz); [pose proof (pos_INR N);
    apply Rmult_le_pos; nra|lra|].
  destruct (small_square (INR (V F + spare) * (INR n * B * (INR n * B))) (phi / 2)) as (eta & e0 & Heta);
    [pose proof (Rle_0_sqr (INR n * B)) as Q; unfold Rsqr in Q; nra|lra|].
  set (P := {| frame_of := F; nodes := n; longest := N; spare_width := spare; spare_heads := idle;
    side u j := sign (nth j (fst (fst (nth_entry E u))) false) / ref j;
    node u := snd (fst (nth_entry E u)); answer u := snd (nth_entry E u);
    coldness := 4 * INR N * INR N / gap; kappa := kappa; zeta := zeta; eta := eta;
    K := INR (V F) / doubt F * (rm * rm) / 2 / eta |}).
  exists P. split; [reflexivity|]. split; [|split; [split; [reflexivity|split; reflexivity]|]].
  2: { do 4 (split; [reflexivity|]). split; [exact Hd|]. exists (S (n * N + idle)). reflexivity. }
  constructor; auto; try exact (Rlt_le _ _ phi0).
  - change (0 < kappa). unfold kappa. nra.
  - intros u Hu. destruct (Hok _ (nth_entry_in E u Hu)) as (_ & _ & Fa & w & W & _).
    split; [|exact Fa]. change (0 < length (snd (fst (nth_entry E u))) <= N)%nat.
    split; [rewrite W; simpl; lia|auto].
  - apply (copy_sharp P gap); auto.
  - change ((2 * INR n + 4) * rm <= kappa / 4). unfold kappa. lra.
  - change (INR n * (zeta * INR N * (zeta * INR N)) <= phi / 2). lra.
  - change (INR (V F + spare) * (INR n * (eta * B) * (INR n * (eta * B))) <= phi / 2). lra.
  - change (INR (V F) / doubt F * (rm * rm) <= 2 * (INR (V F) / doubt F * (rm * rm) / 2 / eta) * eta). right.
    field. lra.
Qed.

(** * What is answered, where the switches of the pattern [on] are on *)
Section Answers.
Variables (P : parameters) (phi : R) (ref : nat -> R) (E : list entry) (on : list bool) (s : nat -> R).
Hypotheses (G : good P phi) (Rd : reads P ref E) (HE : answerable (V P) (switches P) E) (HV : (0 < V P)%nat)
  (Href : forall j, ref j <> 0) (Hon : length on = switches P)
  (Hs : forall j, (j < switches P)%nat -> s j = ref j * sign (nth j on false))
  (Hsize : dot (switches P) s s = energy P (S (last P))).

(** lem:clause: a pattern fits itself, and misses by 2 at least if it is another one. *)
Lemma sign_square b : sign b * sign b = 1.
Proof. destruct b; unfold sign; ring. Qed.
Lemma sign_product a b : -1 <= sign a * sign b <= 1.
Proof. destruct a, b; unfold sign; lra. Qed.
Lemma sign_differs a b : a <> b -> sign a * sign b = -1.
Proof. destruct a, b; unfold sign; intros; try congruence; ring. Qed.
Lemma signs_fit k a b : (forall j, (j < k)%nat -> nth j a false = nth j b false) \/
  sum k (fun j => sign (nth j a false) * sign (nth j b false)) <= INR k - 2.
Proof.
  induction k; [left; lia|]. rewrite S_INR. simpl sum.
  destruct (Bool.bool_dec (nth k a false) (nth k b false)) as [Ek|Ek].
  - destruct IHk as [H|H].
    + left. intros j Hj. destruct (Nat.eq_dec j k) as [->|]; auto. apply H; lia.
    + right. rewrite Ek, sign_square. lra.
  - right. rewrite sign_differs by auto.
    pose proof (sum_le_const k (fun j => sign (nth j a false) * sign (nth j b false)) 1 ltac:(intros;
      apply sign_product)). lra.
Qed.
Lemma fits u : (u < nodes P)%nat ->
  (fst (fst (nth_entry E u)) = on -> fit P s u = 0) /\ (fst (fst (nth_entry E u)) <> on -> fit P s u <= -2)
  /\ - (2 * INR (switches P)) <= fit P s u.
Proof.
  intros Hu. destruct Rd as [Pn Pe]. rewrite Pn in Hu. destruct (proj1 HE _ (nth_entry_in E u Hu)) as [Lu _].
  destruct (Pe u) as [Side _]. set (b := fst (fst (nth_entry E u))) in *.
  assert (X : dot (switches P) (side P u) s = sum (switches P) (fun j => sign (nth j b false) * sign
    (nth j on false))).
  { apply sum_ext. intros j Hj. rewrite Side, Hs by auto. field. auto. }
  unfold fit. rewrite X. split; [|split].
  - intros ->. rewrite (sum_ext _ _ (fun _ => 1)), sum_const by (intros; apply sign_square). ring.
  - intros Hne. destruct (signs_fit (switches P) b on) as [H|H]; [|lra]. exfalso. apply Hne.
    apply (nth_ext _ _ false false); [lia|]. intros j Hj. apply H. lia.
  - pose proof (sum_ge_const (switches P) (fun j => sign (nth j b false) * sign (nth j on false)) (-1)
      ltac:(intros; apply sign_product)). lra.
Qed.
Lemma is_settled : settled P s.
Proof.
  split; [exact Hsize|]. intros u Hu. destruct (fits u Hu) as (F1 & F2 & F3).
  destruct (list_eq_dec Bool.bool_dec (fst (fst (nth_entry E u))) on) as [e|e]; [left; auto|right; split; auto].
Qed.
Lemma after_node A ls t a : In (on, t, a) E ->
  (forall t', Forall (fun c => c < V P)%nat t' -> run (model P) ls t' = final P A s (token t')) ->
  (a < V P)%nat /\ (forall b, (b < V P)%nat -> b <> a -> logit (model P) ls t b < logit (model P) ls t a)
  /\ 1 - doubt P <= probability (model P) ls t a.
Proof.
  intros I Hrun. destruct (In_nth E _ ([], [], 0%nat) I) as (p & Hp & Ep). fold (nth_entry E p) in Ep.
  destruct HE as [Hok Same]. destruct (Hok _ I) as (_ & aV & tV & _). cbn [fst snd] in aV, tV.
  destruct Rd as [Pn Pe]. destruct (Pe p) as [_ X]. rewrite Ep in X. injection X as X1 X2. rewrite <- Pn in Hp.
  assert (X3 : fit P s p = 0) by (apply (fits p Hp); rewrite Ep; reflexivity).
  assert (Bos : forall u, (u < nodes P)%nat -> exists w, node P u = 0%nat :: w /\ ~ In 0%nat w).
  { intros u Hu. destruct (Pe u) as [_ X]. injection X as X _. rewrite X. rewrite Pn in Hu.
    apply (Hok _ (nth_entry_in E u Hu)). }
  assert (Sm : forall u, (u < nodes P)%nat -> fit P s u = 0 -> node P u = t -> answer P u = a).
  { intros u Hu Fu Tu. destruct (Pe u) as [_ X]. injection X as Y1 Y2. rewrite Y2.
    change a with (snd (on, t, a)).
    destruct (fits u Hu) as (_ & F2 & _). rewrite Pn in Hu. apply (Same _ _ (nth_entry_in E u Hu) I).
    destruct (list_eq_dec Bool.bool_dec (fst (fst (nth_entry E u))) on) as [e|e]; [|specialize (F2 e); lra].
    rewrite (surjective_pairing (fst (nth_entry E u))), e, <- Y1, Tu. reflexivity. }
  assert (Lg : forall c, logit (model P) ls t c = logits P t s A c) by (intros c; unfold logit, logits;
    rewrite Hrun by auto; reflexivity).
  split; [exact aV|]. split.
  - intros b Hb Hne. rewrite !Lg. apply (logit_larger P phi G t s p a); auto using is_settled.
  - unfold probability. rewrite Lg.
    rewrite (sum_ext _ _ (fun b => exp (logits P t s A b))) by (intros; rewrite Lg; auto).
    apply (probable P phi G t s p a); auto using is_settled.
Qed.
Lemma says_all A ls p t ans : p <= 1 - doubt P -> (forall e, In e (entries on t ans) -> In e E) ->
  (forall t', Forall (fun c => c < V P)%nat t' -> run (model P) ls t' = final P A s (token t')) ->
  says (model P) ls p t ans.
Proof.
  intros Hp I Hrun. apply (says_entries _ _ _ on). intros t' a Ia.
  destruct (after_node A ls t' a (I _ Ia) Hrun) as (H1 & H2 & H3). split; auto. split; auto. lra.
Qed.
End Answers.
