(** The last layer finds the node that the input ends with, and answers it. *)
From Coq Require Import Reals Lra Lia List Arith Psatz ZArith.
Import ListNotations.
From Snowball Require Import Statement Vectors Kernel Model Runs.
Open Scope R_scope.

(** * silu *)
Lemma silu_own t : 0 <= t -> t / 2 <= silu t.
Proof.
  intros H. unfold silu, Rdiv. apply Rmult_le_compat_l; auto. pose proof (exp_pos (- t)).
  pose proof (exp_le (- t) 0 ltac:(lra)) as E. rewrite exp_0 in E. apply Rinv_le_contravar; lra.
Qed.
Lemma silu_other t : t <= 0 -> - 1 <= silu t <= 0.
Proof.
  intros H. unfold silu. pose proof (exp_linear (- t)) as E. split.
  - apply (Rmult_le_reg_r (1 + exp (- t))); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
  - unfold Rdiv. pose proof (Rinv_0_lt_compat (1 + exp (- t)) ltac:(lra)). nra.
Qed.
Lemma silu_abs t : Rabs (silu t) <= Rabs t.
Proof.
  unfold silu, Rdiv. rewrite Rabs_mult. pose proof (exp_pos (- t)) as E.
  pose proof (Rinv_le_contravar 1 (1 + exp (- t)) ltac:(lra) ltac:(lra)) as I. rewrite Rinv_1 in I.
  pose proof (Rinv_0_lt_compat (1 + exp (- t)) ltac:(lra)). rewrite (Rabs_right (/ _)) by lra.
  pose proof (Rabs_pos t). nra.
Qed.

(** The largest norm, as RMSNorm takes it, that the stream has in the last layer, where context and
    answer have a squared norm of [phi] at most. *)
Definition rho_max (P : parameters) (phi : R) : R :=
  sqrt ((C P + energy P (S (last P)) + phi) / INR (d P) + rms_eps P).
(** A bound of what one unit writes into the answer, divided by [eta]. *)
Definition unit_max (P : parameters) : R :=
  kappa P * (INR (longest P) + 2 * INR (switches P)) / rho P (S (last P)) / rho P (S (last P)).
(** What the proof needs of the parameters. *)
Record good (P : parameters) (phi : R) : Prop := {
  good_eps : 0 <= rms_eps P;
  good_theta : (2 <= theta P < 2 ^ head_half P)%nat;
  good_group : (1 <= group_size P)%nat;
  good_zeta : 0 < zeta P;
  good_eta : 0 < eta P;
  good_kappa : 0 < kappa P;
  good_phi : 0 <= phi;
  good_which : forall l, (which P l < switches P)%nat;
  good_energy : forall l, 0 <= energy P l;
  good_longest : (0 < longest P)%nat;
  good_node : forall u, (u < nodes P)%nat ->
    (0 < length (node P u) <= longest P)%nat /\ Forall (fun a => a < V P)%nat (node P u);
  good_copy : forall D i, (D <= i)%nat -> (S i <= longest P)%nat ->
    1 - / (4 * INR (longest P)) <= weight P D i (i - D) / sum (S i) (weight P D i);
  good_sharp : (2 * INR (nodes P) + 4) * rho_max P phi <= kappa P / 4;
  good_context : INR (nodes P) * (zeta P * INR (longest P) * (zeta P * INR (longest P))) <= phi / 2;
  good_result : INR (W P) * (INR (nodes P) * (eta P * unit_max P) * (INR (nodes P) * (eta P * unit_max P)))
    <= phi / 2;
  good_doubt : 0 < doubt P;
  good_K : INR (V P) / doubt P * (rho_max P phi * rho_max P phi) <= 2 * K P * eta P }.

Section Recall.
Variables (P : parameters) (phi : R).
Hypothesis G : good P phi.
Notation V := (V P). Notation n := (nodes P). Notation N := (longest P). Notation hd := (head_half P).
Notation m := (switches P). Notation Last := (last P). Notation rho_max := (rho_max P phi).
Let Heps := good_eps _ _ G.
Let Hz := good_zeta _ _ G.
Let Heta := good_eta _ _ G.
Let Hkappa := good_kappa _ _ G.
Let Hphi := good_phi _ _ G.
Let Henergy := good_energy _ _ G.
Let HN := good_longest _ _ G.
Let Hnode u (H : (u < n)%nat) := proj1 (good_node _ _ G u H).
Let Hcopy := good_copy _ _ G.
Let Hsharp := good_sharp _ _ G.
Let Hcontext := good_context _ _ G.
Let Hresult := good_result _ _ G.
Let Hdoubt := good_doubt _ _ G.
Let HK := good_K _ _ G.

(** * What is found *)
Lemma weight_pos D i j : 0 < weight P D i j.
Proof. apply exp_pos. Qed.
Lemma hits_01 tok u D i j : hits P tok u D i j = 0 \/ hits P tok u D i j = 1.
Proof. unfold hits. destruct (tok j =? wanted P u D)%nat; auto. Qed.
Lemma total_pos D i : 0 < sum (S i) (weight P D i).
Proof. apply sum_pos; [lia|apply weight_pos]. Qed.
Lemma copied_hit tok u i D j : (j <= i)%nat -> hits P tok u D i j = 1 ->
  weight P D i j / sum (S i) (weight P D i) <= copied P tok u i D.
Proof.
  intros Hj H. unfold copied, Rdiv. apply Rmult_le_compat_r; [left; apply Rinv_0_lt_compat, total_pos|].
  replace (weight P D i j) with (weight P D i j * hits P tok u D i j) by (rewrite H; ring).
  apply (sum_term (S i) (fun j => weight P D i j * hits P tok u D i j)); [lia|].
  intros k _. pose proof (weight_pos D i k). destruct (hits_01 tok u D i k) as [-> | ->]; lra.
Qed.
Lemma copied_miss tok u i D j : (j <= i)%nat -> hits P tok u D i j = 0 ->
  copied P tok u i D <= 1 - weight P D i j / sum (S i) (weight P D i).
Proof.
  intros Hj H. pose proof (total_pos D i) as T. unfold copied. set (w := sum _ _) in T.
  apply (Rmult_le_reg_r w); [auto|]. unfold Rdiv. rewrite Rmult_minus_distr_r, !Rmult_assoc, Rinv_l by lra.
  assert (sum (S i) (fun j => weight P D i j * hits P tok u D i j) + sum (S i) (fun k => weight P D i k *
    (1 - hits P tok u D i k)) = w).
  { rewrite <- sum_plus. apply sum_ext. intros; ring. }
  assert (weight P D i j * (1 - hits P tok u D i j) <= sum (S i) (fun k => weight P D i k *
    (1 - hits P tok u D i k))).
  { apply (sum_term (S i) (fun k => weight P D i k * (1 - hits P tok u D i k))); [lia|].
    intros k _. pose proof (weight_pos D i k). destruct (hits_01 tok u D i k) as [-> | ->]; lra. }
  rewrite H in H1. lra.
Qed.
Lemma copied_bounds tok u i D : 0 <= copied P tok u i D <= 1.
Proof.
  pose proof (total_pos D i) as T. pose proof (weight_pos D i 0) as W.
  pose proof (Rdiv_lt_0_compat _ _ W T). destruct (hits_01 tok u D i 0) as [H0|H0].
  - pose proof (copied_miss tok u i D 0 ltac:(lia) H0). split; [|lra].
    unfold copied. apply Rmult_le_pos; [|left; apply Rinv_0_lt_compat; auto]. apply sum_nonneg.
    intros k _. pose proof (weight_pos D i k). destruct (hits_01 tok u D i k) as [-> | ->]; lra.
  - pose proof (copied_hit tok u i D 0 ltac:(lia) H0). split; [lra|].
    unfold copied. apply (Rmult_le_reg_r (sum (S i) (weight P D i))); auto. unfold Rdiv.
    rewrite Rmult_assoc, Rinv_l, Rmult_1_l, Rmult_1_r by lra.
    apply sum_le. intros k _. pose proof (weight_pos D i k). destruct (hits_01 tok u D i k) as [-> | ->]; lra.
Qed.
Lemma found_sum tok i u : (u < n)%nat -> found P tok i u = sum (length (node P u)) (copied P tok u i).
Proof.
  intros Hu. pose proof (Hnode u Hu) as H. unfold found. set (m := length (node P u)) in *.
  replace N with (m + (N - m))%nat by lia. rewrite sum_split, (sum_zero (N - m)).
  - rewrite Rplus_0_r. apply sum_ext. intros D HD. destruct (Nat.ltb_spec D m); [auto|lia].
  - intros D HD. destruct (Nat.ltb_spec (m + D) m); [lia|auto].
Qed.
Lemma found_bounds tok i u : (u < n)%nat -> 0 <= found P tok i u <= INR (length (node P u)).
Proof.
  intros Hu. rewrite found_sum by auto. split.
  - apply sum_nonneg. intros. apply copied_bounds.
  - rewrite <- (Rmult_1_r (INR _)). apply sum_le_const. intros. apply copied_bounds.
Qed.
Lemma leak : 0 < / (4 * INR N) <= 1 / 4 /\ / (4 * INR N) * INR N = 1 / 4.
Proof.
  assert (H : 1 <= INR N) by (apply (le_INR 1); lia). split; [split|].
  - apply Rinv_0_lt_compat; lra.
  - pose proof (Rinv_le_contravar 4 (4 * INR N)). lra.
  - field; lra.
Qed.
Lemma found_own t u : (u < n)%nat -> node P u = t ->
  INR (length t) - 1 / 4 <= found P (token t) (length t - 1) u.
Proof.
  intros Hu E. pose proof (Hnode u Hu) as L. rewrite found_sum, E in * by auto. destruct leak as [L1 L2].
  pose proof (sum_ge_const (length t) (copied P (token t) u (length t - 1)) (1 - / (4 * INR N))) as Sm.
  assert (INR (length t) <= INR N) by (apply le_INR; lia). pose proof (pos_INR (length t)).
  assert (forall D, (D < length t)%nat -> 1 - / (4 * INR N) <= copied P (token t) u (length t - 1) D);
    [|specialize (Sm H1); nra].
  intros D HD. eapply Rle_trans; [apply (Hcopy D (length t - 1)); lia|]. apply copied_hit; [lia|].
  unfold hits, token, wanted. rewrite E. replace (length t - 1 - D)%nat with (length t - S D)%nat by lia.
  rewrite Nat.eqb_refl. reflexivity.
Qed.
Lemma found_other t u D : (u < n)%nat -> (length t <= N)%nat -> (D < length t)%nat
  -> (D < length (node P u))%nat ->
  nth (length t - S D) t 0%nat <> wanted P u D ->
  found P (token t) (length t - 1) u <= INR (length (node P u)) - 3 / 4.
Proof.
  intros Hu HtN H1 H2 Hne. rewrite found_sum by auto. destruct leak as [L1 L2].
  set (m := length (node P u)) in *.
  assert (Q : copied P (token t) u (length t - 1) D <= / (4 * INR N)).
  { pose proof (Hcopy D (length t - 1) ltac:(lia) ltac:(lia)).
    eapply Rle_trans; [apply (copied_miss _ _ _ _ (length t - 1 - D)); [lia|]|lra].
    unfold hits, token. replace (length t - 1 - D)%nat with (length t - S D)%nat by lia.
    destruct (Nat.eqb_spec (nth (length t - S D) t 0%nat) (wanted P u D)); [congruence|auto]. }
  pose proof (sum_term m (fun D => 1 - copied P (token t) u (length t - 1) D) D H2) as Sm. simpl in Sm.
  rewrite (sum_minus m (fun _ => 1)), sum_const in Sm.
  assert (forall j, (j < m)%nat -> 0 <= 1 - copied P (token t) u (length t - 1) j) by (intros;
    pose proof (copied_bounds (token t) u (length t - 1) j); lra).
  specialize (Sm H). lra.
Qed.

(** * The last layer at every input *)
Section AnyInput.
Variables (s : nat -> R) (tok : nat -> nat) (i : nat).
(** The switches have their size, and those of each unit fit, or do not by 2 at least. *)
Definition settled : Prop := dot m s s = energy P (S Last) /\
  forall u, (u < n)%nat -> fit P s u = 0 \/ - (2 * INR m) <= fit P s u <= - 2.
Hypothesis Hs : settled.
Lemma context_small : 0 <= dot n (context P tok i) (context P tok i) <= phi / 2.
Proof.
  split; [apply dot_self|]. eapply Rle_trans; [|exact Hcontext]. apply sum_le_const. intros u Hu.
  unfold context.
  pose proof (found_bounds tok i u Hu).
  assert (INR (length (node P u)) <= INR N) by (apply le_INR, Hnode; auto).
  assert (0 <= zeta P * found P tok i u <= zeta P * INR N) by nra. nra.
Qed.
Lemma reading_bounds : rho P (S Last) <= reading P s tok i <= rho_max.
Proof.
  pose proof context_small. pose proof (d_pos P). unfold rho, reading, Recall.rho_max. rewrite (proj1 Hs).
  split; apply sqrt_le_1_alt, Rplus_le_compat_r, Rmult_le_compat_r; try lra; left; apply Rinv_0_lt_compat; auto.
Qed.
Lemma reading_pos : 0 < reading P s tok i.
Proof. pose proof reading_bounds. pose proof (rho_pos P Heps Henergy (S Last)). lra. Qed.
Lemma result_small : 0 <= dot (W P) (result P (reading P s tok i) s tok i) (result P
  (reading P s tok i) s tok i) <= phi / 2.
Proof.
  split; [apply dot_self|]. eapply Rle_trans; [|exact Hresult]. apply sum_le_const. intros a Ha.
  pose proof reading_bounds as [R1 _]. pose proof (rho_pos P Heps Henergy (S Last)) as R0.
  pose proof reading_pos as R2.
  set (r := reading P s tok i) in *. set (B := unit_max P) in *.
  pose proof (pos_INR n). pose proof (pos_INR m) as Hm. assert (HNr : 1 <= INR N) by (apply (le_INR 1); lia).
  assert (I0 : 0 < / r) by (apply Rinv_0_lt_compat; auto).
  assert (I1 : / r <= / rho P (S Last)) by (apply Rinv_le_contravar; auto).
  assert (T : Rabs (result P r s tok i a) <= INR n * (eta P * B)).
  { assert (Tri : forall k f c, (forall u, (u < k)%nat -> Rabs (f u) <= c) -> Rabs (sum k f) <= INR k * c).
    { induction k; intros f c H1; [simpl; rewrite Rabs_R0; lra|]. rewrite S_INR. simpl sum.
      pose proof (Rabs_triang (sum k f) (f k)). pose proof (IHk f c ltac:(intros; apply H1; lia)).
      pose proof (H1 k ltac:(lia)). lra. }
    apply Tri. intros u Hu. rewrite Rabs_mult. apply Rmult_le_compat; try apply Rabs_pos.
    - destruct (a =? answer P u)%nat; [rewrite Rabs_right; lra|rewrite Rabs_R0; lra].
    - rewrite Rabs_mult, (Rabs_right (/ r)) by lra. unfold B, unit_max, Rdiv.
      apply Rmult_le_compat; try apply Rabs_pos; try lra.
      eapply Rle_trans; [apply silu_abs|]. unfold gate, Rdiv.
      rewrite !Rabs_mult, (Rabs_right (kappa P)), (Rabs_right (/ r)) by lra.
      apply Rmult_le_compat; try (apply Rmult_le_pos; [lra|apply Rabs_pos]); try lra.
      apply Rmult_le_compat_l; [lra|].
      pose proof (found_bounds tok i u Hu).
      assert (INR (length (node P u)) <= INR N) by (apply le_INR, Hnode; auto).
      destruct (proj2 Hs u Hu) as [F|F]; apply Rabs_le; lra. }
  set (x := result P r s tok i a) in *. pose proof (Rabs_pos x).
  apply Rle_trans with (Rabs x * Rabs x); [|apply Rmult_le_compat; auto].
  rewrite <- Rabs_mult, Rabs_right; nra.
Qed.
Lemma final_norm A : (tok i < V)%nat ->
  C P + energy P (S Last) <= dot (d P) (final P A s tok i) (final P A s tok i) <= C P + energy P (S Last) + phi.
Proof.
  intros Hk. unfold final. rewrite self_state, (proj1 Hs) by auto. pose proof context_small.
  pose proof result_small. lra.
Qed.
End AnyInput.

(** * On a node *)
Section OnNode.
Variables (t : list nat) (s : nat -> R) (p a : nat).
Hypotheses (Hs : settled s) (Hp : (p < n)%nat) (Hpt : node P p = t) (Hpa : answer P p = a) (Hps : fit P s p = 0)
  (Hbos : forall u, (u < n)%nat -> exists w, node P u = 0%nat :: w /\ ~ In 0%nat w)
  (Hsame : forall u, (u < n)%nat -> fit P s u = 0 -> node P u = t -> answer P u = a).
Notation i := (length t - 1)%nat.
Notation r := (reading P s (token t) i).
Lemma own_gate u : (u < n)%nat -> node P u = t -> fit P s u = 0 -> 2 * INR n + 4 <= gate P r s (token t) i u.
Proof.
  intros Hu Eu Fu. pose proof (found_own t u Hu Eu). pose proof (reading_bounds s (token t) i Hs).
  pose proof (reading_pos s (token t) i Hs).
  unfold gate. rewrite Eu, Fu. apply (Rmult_le_reg_r r); auto. unfold Rdiv.
  rewrite Rmult_assoc, Rinv_l by lra. pose proof (pos_INR n). nra.
Qed.
Lemma other_gate u : (u < n)%nat -> node P u <> t \/ fit P s u <> 0 -> gate P r s (token t) i u <= 0.
Proof.
  intros Hu Hne. pose proof (reading_pos s (token t) i Hs) as R0.
  assert (X : found P (token t) i u - INR (length (node P u)) + 1 / 2 + fit P s u <= 0).
  { destruct (proj2 Hs u Hu) as [F|F].
    - destruct Hne as [Hne|Hne]; [|congruence]. destruct (Hbos u Hu) as [x [Ex Hx]].
      destruct (Hbos p Hp) as [y [Ey Hy]]. rewrite Hpt in Ey. assert (y <> x) by congruence.
      destruct (separation 0 y x Hy Hx H) as [D [D1 [D2 D3]]]. rewrite <- Ex, <- Ey in *.
      pose proof (Hnode p Hp) as Lp. rewrite Hpt in Lp.
      pose proof (found_other t u D Hu ltac:(lia) D1 D2 D3). lra.
    - pose proof (found_bounds (token t) i u Hu). lra. }
  unfold gate, Rdiv. pose proof (Rinv_0_lt_compat r R0). set (x0 := _ + fit P s u) in *.
  assert (kappa P * x0 <= 0) by nra. nra.
Qed.
Lemma node_leads b : b <> a -> 2 * eta P / r <= result P r s (token t) i a - result P r s (token t) i b.
Proof.
  intros Hb. pose proof (reading_pos s (token t) i Hs) as R0. pose proof (Rinv_0_lt_compat r R0) as I0.
  pose proof (pos_INR n) as Hn.
  set (g := fun u => gate P r s (token t) i u). unfold result. rewrite <- sum_minus.
  rewrite (sum_ext n _ (fun u => ((if (a =? answer P u)%nat then 1 else 0) - (if (b
    =? answer P u)%nat then 1 else 0))
     * silu (g u) * (eta P / r))) by (intros u _; unfold g, Rdiv;
         destruct (a =? answer P u)%nat, (b =? answer P u)%nat; ring).
  assert (E0 : 0 < eta P / r) by (apply Rdiv_lt_0_compat; auto).
  apply Rle_trans with ((INR n + 2) * (eta P / r) - INR n * (eta P / r)); [unfold Rdiv; nra|].
  assert (own : forall u, (u < n)%nat -> node P u = t -> fit P s u = 0 ->
    INR n + 2 <= ((if (a =? answer P u)%nat then 1 else 0) - (if (b =? answer P u)%nat then 1 else 0)) * silu
      (g u)).
  { intros u Hu Eu Fu. rewrite (Hsame u Hu Fu Eu), Nat.eqb_refl. destruct (Nat.eqb_spec b a); [congruence|].
    pose proof (own_gate u Hu Eu Fu) as Gp. fold (g u) in Gp. pose proof (silu_own (g u) ltac:(lra)). lra. }
  apply (sum_pick n _ p); auto; [lra|apply Rmult_le_compat_r; [lra|auto]|].
  intros u Hu. rewrite <- (Rmult_1_l (eta P / r)), Ropp_mult_distr_l, Rmult_1_l.
  apply Rmult_le_compat_r; [lra|].
  destruct (list_eq_dec Nat.eq_dec (node P u) t) as [Et|Et], (Req_dec (fit P s u) 0) as [Ef|Ef];
    [pose proof (own u Hu Et Ef); lra|..];
    (assert (Ng : node P u <> t \/ fit P s u <> 0) by auto; pose proof (silu_other (g u) (other_gate u Hu Ng));
     destruct (a =? answer P u)%nat, (b =? answer P u)%nat; lra).
Qed.

Variable A : R.
Hypotheses (HV : (0 < V)%nat) (HtV : Forall (fun a => a < V)%nat t) (HaV : (a < V)%nat).
Definition logits (c : nat) : R := times (width (model P)) (unembedding (model P)) (rmsnorm (model P)
  (final P A s (token t) i)) c.
(** lem:recall and lem:confidence *)
Lemma logit_lead b : (b < V)%nat -> b <> a -> INR V / doubt P <= logits a - logits b.
Proof.
  intros Hb Hne. assert (Tk : (token t i < V)%nat) by (apply token_V; auto).
  pose proof (final_norm s (token t) i Hs A Tk) as [F1 F2]. pose proof (d_pos P) as d0.
  pose proof (C_pos P) as C0.
  pose proof (Rinv_0_lt_compat _ d0) as d1. pose proof (Henergy (S Last)).
  assert (Val : forall c, (c < V)%nat -> logits c = K P * result P r s (token t) i c
     / sqrt (dot (d P) (final P A s (token t) i) (final P A s (token t) i) / INR (d P) + rms_eps P)).
  { intros c Hc. unfold logits, times, rmsnorm. cbn [width unembedding model norm_eps].
    rewrite dot_divided, dot_only by (unfold d, told, W; lia).
    unfold final at 1. rewrite at_told. reflexivity. }
  rewrite !Val by auto. set (f := dot _ _ _) in *.
  assert (f0 : 0 < f / INR (d P)) by (apply Rdiv_lt_0_compat; nra).
  assert (q0 : 0 < sqrt (f / INR (d P) + rms_eps P)) by (apply sqrt_lt_R0; lra).
  assert (q1 : sqrt (f / INR (d P) + rms_eps P) <= rho_max).
  { apply sqrt_le_1_alt, Rplus_le_compat_r, Rmult_le_compat_r; [lra|]. auto. }
  set (q := sqrt _) in *. pose proof (node_leads b Hne) as Ld.
  pose proof (reading_bounds s (token t) i Hs) as [_ R1].
  pose proof (reading_pos s (token t) i Hs) as R0. set (x := result _ _ _ _ _ a) in *.
  set (y := result _ _ _ _ _ b) in *.
  set (ri := r) in *. assert (0 <= INR V / doubt P) by (apply Rmult_le_pos; [apply pos_INR|left;
    apply Rinv_0_lt_compat; auto]).
  assert (Kp : 0 <= K P) by (apply Rnot_lt_le; intros Kn; pose proof (Rle_0_sqr rho_max) as Q;
    unfold Rsqr in Q; nra).
  assert (X : 2 * eta P <= (x - y) * ri).
  { apply (Rmult_le_compat_r ri) in Ld; [|lra]. unfold Rdiv in Ld. rewrite Rmult_assoc, Rinv_l in Ld by lra.
    lra. }
  apply (Rmult_le_reg_r (q * ri)); [nra|].
  replace ((K P * x / q - K P * y / q) * (q * ri)) with (K P * ((x - y) * ri)) by (field; lra).
  apply Rle_trans with (INR V / doubt P * (rho_max * rho_max)); [|nra].
  apply Rmult_le_compat_l; [lra|]. apply Rmult_le_compat; lra.
Qed.
Lemma logit_larger b : (b < V)%nat -> b <> a -> logits b < logits a.
Proof. intros Hb Hne. pose proof (logit_lead b Hb Hne).
  pose proof (Rdiv_lt_0_compat _ _ (lt_0_INR V HV) Hdoubt). lra. Qed.
Lemma probable : 1 - doubt P <= exp (logits a) / sum V (fun b => exp (logits b)).
Proof.
  eapply Rle_trans; [|apply (softmax_lead V logits a (INR V / doubt P)); auto].
  - pose proof (lt_0_INR V HV). set (y := INR V / doubt P). pose proof (exp_linear y). rewrite exp_Ropp.
    pose proof (exp_pos y) as E.
    assert (Ey : y * doubt P = INR V) by (unfold y; field; apply Rgt_not_eq, Hdoubt).
    assert (INR V * / exp y <= doubt P); [|lra].
    apply (Rmult_le_reg_r (exp y)); auto. rewrite Rmult_assoc, Rinv_l by lra. pose proof Hdoubt. nra.
  - intros j Hj Hne. pose proof (logit_lead j Hj Hne). lra.
Qed.
End OnNode.
End Recall.
