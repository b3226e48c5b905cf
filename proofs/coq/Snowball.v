(** The proof of the theorem: choice of all parameters, and the clauses from the lemmas. *)
From Coq Require Import Reals Lra Lia List Arith Psatz ZArith.
Import ListNotations.
From Snowball Require Import Statement Vectors Kernel Model Runs Recall Schedule Nodes.
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

Lemma copy_sharp P gap : (2 <= theta P < 2 ^ head_half P)%nat -> (0 < longest P)%nat -> 0 < gap ->
  (forall x : Z, x <> 0%Z -> (Z.abs x <= Z.of_nat (longest P))%Z -> cos (IZR x) + cos (IZR x * slow (theta P) (head_half P)) <= 2 - gap) ->
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
    { rewrite exp_Ropp. apply Rinv_le_contravar; [nra|]. replace (coldness P * gap) with (4 * INR N * INR N) by (rewrite Hc; field; lra).
      pose proof (exp_linear (4 * INR N * INR N)). lra. }
    assert (INR N * / (4 * INR N * INR N) = / (4 * INR N)) by (field; lra).
    assert (INR (S i) * exp (- (coldness P * gap)) <= INR N * / (4 * INR N * INR N)) by (apply Rmult_le_compat; try lra; apply pos_INR). lra.
  - intros j Hj Hne. unfold z. rewrite minus_INR by auto.
    replace (INR i - (INR i - INR D) - INR D) with 0 by ring. rewrite Rmult_0_l, cos_0.
    specialize (Hgap (Z.of_nat i - Z.of_nat j - Z.of_nat D)%Z ltac:(lia) ltac:(lia)).
    rewrite !minus_IZR, <- !INR_IZR_INZ in Hgap. nra.
Qed.

Definition nth_entry (D : list row) (u : nat) : entry := nth u (all_entries D) (1, [], 0%nat).
Lemma nth_entry_in D u : (u < length (all_entries D))%nat -> In (nth_entry D u) (all_entries D).
Proof. apply nth_In. Qed.
(** Side, tokens and wanted token of each node are those of the dataset's nodes. *)
Definition reads (P : parameters) (D : list row) : Prop := nodes P = length (all_entries D)
  /\ forall u, (side P u, node P u, answer P u) = nth_entry D u.

Lemma parameters_exist V D L target theta half_head epsilon p rms_eps :
  dataset V D -> (target + 2 <= L)%nat -> 0 < epsilon < 2 -> p < 1 -> (2 <= theta < 2 ^ half_head)%nat -> 0 <= rms_eps ->
  exists P phi, good P phi /\ schedule epsilon target (last P) (U P) phi (switch P) (angle P) /\ reads P D /\ doubt P = 1 - p
  /\ S (last P) = L /\ Model.V P = V 
  /\ Model.d P = (S (nodes P * longest P + spare_heads P) * (2 * head_half P))%nat
  /\ Model.theta P = theta /\ head_half P = half_head /\ Model.rms_eps P = rms_eps.
Proof.
  intros HD HL He Hp Ht Heps. set (E := all_entries D). destruct (schedule_exists epsilon target (L - 1) He ltac:(lia)) as (U & phi & sw & ang & Sch).
  set (n := length E). set (N := S (list_max (map (fun e : entry => length (snd (fst e))) E))).
  assert (N0 : (0 < N)%nat) by (unfold N; lia).
  assert (N1 : forall u, (u < n)%nat -> (length (snd (fst (nth_entry D u))) <= N)%nat).
  { intros u Hu. unfold N. apply le_S.
    pose proof (proj1 (list_max_le (map (fun e : entry => length (snd (fst e))) E) _) (le_n _)) as M.
    rewrite Forall_forall in M. apply M. apply (in_map (fun e : entry => length (snd (fst e)))), nth_entry_in. exact Hu. }
  clearbody N. destruct (kernel_gap theta half_head N Ht) as (gap & Hg & Hgap).
  set (idle := (4 + V + V + n)%nat). set (heads := S (n * N + idle)). set (spare := (heads * (2 * half_head) - idle)%nat).
  set (d := (4 + (V + (n + (V + spare))))%nat).
  assert (Hd : d = (heads * (2 * half_head))%nat).
  { assert (1 <= half_head)%nat by (destruct half_head; simpl in Ht; lia). assert (idle <= heads * (2 * half_head))%nat by (unfold heads; nia).
    unfold d, spare. unfold idle in *. lia. }
  set (rm := sqrt ((U * U + 2 + sw (S (L - 1)) * sw (S (L - 1)) + phi) / INR d + rms_eps)).
  set (r0 := sqrt ((U * U + 2 + sw (S (L - 1)) * sw (S (L - 1))) / INR d + rms_eps)).
  set (kappa := 4 * (2 * INR n + 4) * rm). set (B := kappa * INR N / r0 / r0).
  pose proof (room _ _ _ _ _ _ _ Sch) as phi0. pose proof (pos_INR n) as n0. pose proof (pos_INR (V + spare)) as V0.
  assert (d0 : 0 < INR d) by (apply lt_0_INR; unfold d; lia).
  assert (rm0 : 0 < rm). { apply sqrt_lt_R0. assert (0 < (U * U + 2 + sw (S (L - 1)) * sw (S (L - 1)) + phi) / INR d) by (apply Rdiv_lt_0_compat; nra). lra. }
  destruct (small_square (INR n * (INR N * INR N)) (phi / 2)) as (zeta & z0 & Hz); [pose proof (pos_INR N); apply Rmult_le_pos; nra|lra|].
  destruct (small_square (INR (V + spare) * (INR n * B * (INR n * B))) (phi / 2)) as (eta & e0 & Heta);
    [pose proof (Rle_0_sqr (INR n * B)) as Q; unfold Rsqr in Q; nra|lra|].
  exists {| Model.V := V; nodes := n; longest := N; head_half := half_head; Model.theta := theta; Model.rms_eps := rms_eps;
    spare_width := spare; spare_heads := idle;
    Model.U := U; switch := sw; angle := ang; last := L - 1;
    side u := fst (fst (nth_entry D u)); node u := snd (fst (nth_entry D u)); answer u := snd (nth_entry D u);
    coldness := 4 * INR N * INR N / gap; kappa := kappa; zeta := zeta; eta := eta;
    K := INR V / (1 - p) * (rm * rm) / 2 / eta; doubt := 1 - p |}, phi.
  set (P := Build_parameters _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _).
  assert (Hsw := switched _ _ _ _ _ _ _ Sch).
  split; [|split; [exact Sch|split; [|split; [reflexivity|split; [|split; [reflexivity|split; [exact Hd|split; [|split]; reflexivity]]]]]]].
  2: { split; [reflexivity|]. intros u. cbn. destruct (nth_entry D u) as [[]]. reflexivity. }
  2: { cbn. lia. }
  constructor; auto; try exact (Rlt_le _ _ phi0).
  - change (0 < kappa). unfold kappa. nra.
  - change (forall u, fst (fst (nth_entry D u)) = 1 \/ fst (fst (nth_entry D u)) = - 1).
    intros u. destruct (Nat.lt_ge_cases u n) as [Hu|Hu].
    + destruct (entry_ok V D _ HD (nth_entry_in D u Hu)) as [S _]. auto.
    + left. unfold nth_entry. rewrite nth_overflow by exact Hu. reflexivity.
  - intros u Hu. destruct (entry_ok V D _ HD (nth_entry_in D u Hu)) as (_ & _ & F & w & W & _).
    split; [|exact F]. change (0 < length (snd (fst (nth_entry D u))) <= N)%nat. split; [rewrite W; simpl; lia|auto].
  - apply (copy_sharp P gap); auto.
  - change ((2 * INR n + 4) * rm <= kappa / 4). unfold kappa. lra.
  - change (INR n * (zeta * INR N * (zeta * INR N)) <= phi / 2). lra.
  - change (INR (V + spare) * (INR n * (eta * B) * (INR n * (eta * B))) <= phi / 2). lra.
  - change (0 < 1 - p). lra.
  - change (INR V / (1 - p) * (rm * rm) <= 2 * (INR V / (1 - p) * (rm * rm) / 2 / eta) * eta). right. field. lra.
Qed.

Section Clauses.
Variables (V : nat) (D : list row) (L target : nat) (epsilon p : R) (P : parameters) (phi : R).
Hypotheses (HD : dataset V D) (HL : (target + 2 <= L)%nat)
  (G : good P phi) (Sch : schedule epsilon target (last P) (U P) phi (switch P) (angle P)) (Rd : reads P D)
  (PL : S (last P) = L) (PV : Model.V P = V) (Pp : doubt P = 1 - p).
Notation E := (all_entries D).
Notation sw := (switch P). Notation ang := (angle P). Notation M := (model P).
Let Gs := good_switch _ _ G.

Lemma V_pos : (0 < Model.V P)%nat.
Proof.
  rewrite PV. destruct HD as (N0 & W & _). destruct D as [|r rest]; [congruence|].
  destruct (W r (or_introl eq_refl)) as (N1 & _ & _ & F). rewrite !Forall_app in F. destruct F as (_ & F & _).
  destruct (label r); [congruence|]. inversion F; subst. lia.
Qed.

(** * Every input *)
Section AnyInput.
Variables (t : list nat) (i : nat).
Hypothesis Hin : Forall (fun a => a < V)%nat t.
Let HinP : Forall (fun a => a < Model.V P)%nat t.
Proof. rewrite PV. exact Hin. Qed.
Lemma at_depth k : (k <= L)%nat -> exists x y,
  entering M k t i = state P (sum k ang) (sw k) (token t i) x y
  /\ ((k < L)%nat -> x = zero /\ y = zero) /\ 0 <= dot (nodes P) x x + dot (W P) y y <= phi.
Proof.
  intros Hk. unfold entering. rewrite layers_first by lia. destruct (Nat.eq_dec k L) as [->|Hne].
  - rewrite <- PL, (run_all P) by (try apply G; auto using V_pos).
    eexists. eexists. split; [reflexivity|]. split; [lia|].
    pose proof (context_small P phi G (token t) i). pose proof (result_small P phi G (sw (S (last P))) (token t) i (or_introl eq_refl)). lra.
  - rewrite (run_before P) by (try apply G; auto using V_pos; lia). exists zero, zero. repeat split; auto; rewrite !dot_zero; pose proof (room _ _ _ _ _ _ _ Sch); lra.
Qed.
Lemma at_depth_without k : (target < k <= L)%nat -> exists x y,
  entering_without M target k t i = state P (sum k ang - ang target) (- sw k) (token t i) x y
  /\ ((k < L)%nat -> x = zero /\ y = zero).
Proof.
  intros Hk. unfold entering_without. rewrite layers_first by lia. pose proof (flips _ _ _ _ _ _ _ Sch) as Fl.
  destruct (Nat.eq_dec k L) as [->|Hne].
  - rewrite <- PL, (run_without P) by (try apply G; auto using V_pos; lia).
    eexists. eexists. split; [reflexivity|]. lia.
  - rewrite (run_without_before P) by (try apply G; auto using V_pos; lia). exists zero, zero. auto.
Qed.
Lemma tok : (token t i < Model.V P)%nat.
Proof. apply token_V; auto using V_pos. Qed.
Lemma positive k : (k <= L)%nat -> 0 < norm (d P) (entering M k t i).
Proof.
  intros Hk. destruct (at_depth k Hk) as (x & y & -> & _ & F). unfold norm. rewrite self_state by apply tok.
  apply sqrt_lt_R0. pose proof (C_pos P). nra.
Qed.
Lemma scored k : (k < L)%nat -> exists f, 0 <= f <= phi /\ ((S k < L)%nat -> f = 0) /\
  score M k t i = step_score (U P) sw ang k f.
Proof.
  intros Hk. destruct (at_depth k ltac:(lia)) as (x & y & E1 & Z1 & _). destruct (at_depth (S k) Hk) as (x' & y' & E2 & Z2 & F2).
  destruct (Z1 Hk) as [-> ->]. exists (dot (nodes P) x' x' + dot (W P) y' y'). split; auto. split.
  { intros H. destruct (Z2 H) as [-> ->]. rewrite !dot_zero. ring. }
  unfold score, cosine, norm. rewrite E1, E2. cbn [width model]. rewrite !self_state, dot_state, !dot_zero by apply tok.
  unfold step_score, step, C. simpl sum. replace (sum k ang - (sum k ang + ang k)) with (- ang k) by ring. rewrite cos_neg, !Rplus_0_r. reflexivity.
Qed.
Lemma divergence_zero : divergence M target target t i = 0.
Proof.
  unfold divergence, entering, entering_without. rewrite without_none by (rewrite firstn_length; lia).
  unfold norm at 1. rewrite dot_minus. replace (_ - _ + _) with 0 by ring. rewrite sqrt_0. unfold Rdiv. ring.
Qed.
Lemma diverges k : epsilon <= 1 / 2 -> (target < k <= L)%nat -> exists e f, 0 <= e /\ 0 <= f <= phi /\ ((k < L)%nat -> e = 0 /\ f = 0) /\
  divergence M target k t i = sqrt ((4 * (sw k * sw k) + e) / (C P + sw k * sw k + f)).
Proof.
  intros Hs Hk. destruct (grows _ _ _ _ _ _ _ Sch Hs) as (A & _).
  destruct (at_depth k ltac:(lia)) as (x & y & E1 & Z1 & F1). destruct (at_depth_without k Hk) as (x' & y' & E2 & Z2).
  exists (dot (nodes P) (minus x x') (minus x x') + dot (W P) (minus y y') (minus y y')),
    (dot (nodes P) x x + dot (W P) y y).
  pose proof (dot_self (nodes P) (minus x x')). pose proof (dot_self (W P) (minus y y')).
  split; [lra|]. split; auto. split.
  { intros H1. destruct (Z1 H1) as [-> ->], (Z2 H1) as [-> ->]. rewrite !dot_minus, !dot_zero. lra. }
  unfold divergence, norm. rewrite E1, E2. cbn [width model].
  rewrite dot_minus, !self_state, dot_state by apply tok. pose proof (C_pos P).
  rewrite <- sqrt_div_alt by nra. do 2 f_equal. rewrite !dot_minus.
  replace (sum k ang - (sum k ang - ang target)) with (ang target) by ring. rewrite A. unfold C. ring.
Qed.
Lemma fraction a b e f : 0 <= a -> 0 <= b -> 0 <= f -> 0 <= e -> a * (C P + b + f) < b * (C P + a) ->
  4 * a / (C P + a) < (4 * b + e) / (C P + b + f).
Proof.
  intros Ha Hb Hf He' H. pose proof (C_pos P). apply (Rmult_lt_reg_r ((C P + a) * (C P + b + f))); [nra|].
  replace (4 * a / (C P + a) * ((C P + a) * (C P + b + f))) with (4 * (a * (C P + b + f))) by (field; lra).
  replace ((4 * b + e) / (C P + b + f) * ((C P + a) * (C P + b + f))) with ((4 * b + e) * (C P + a)) by (field; lra). nra.
Qed.
Lemma divergence_grows k : epsilon <= 1 / 2 -> (target <= k < L)%nat -> divergence M target k t i < divergence M target (S k) t i.
Proof.
  intros Hs Hk. destruct (grows _ _ _ _ _ _ _ Sch Hs) as (_ & Inc & Fin & Sm & _). pose proof (C_pos P) as C0.
  destruct (diverges (S k) Hs ltac:(lia)) as (e & f & e0 & f0 & Z & ->).
  assert (Q : 0 < sw (S k) * sw (S k)) by (pose proof (Gs (S k)); nra).
  destruct (Nat.eq_dec k target) as [->|Hne].
  - rewrite divergence_zero. apply sqrt_lt_R0. apply Rdiv_lt_0_compat; nra.
  - destruct (diverges k Hs ltac:(lia)) as (e' & f' & _ & _ & Z' & ->). destruct (Z' ltac:(lia)) as [-> ->]. rewrite !Rplus_0_r.
    assert (Q' : 0 <= sw k * sw k) by nra.
    apply sqrt_lt_1_alt. split; [apply Rmult_le_pos; [lra|left; apply Rinv_0_lt_compat; lra]|]. apply fraction; try lra.
    destruct (Nat.eq_dec k (last P)) as [->|Hl].
    + fold (C P) in Sm. pose proof (room _ _ _ _ _ _ _ Sch) as p0.
      set (a := sw (last P) * sw (last P)) in *. set (b := sw (S (last P)) * sw (S (last P))) in *.
      assert (a * f <= a * phi) by nra. assert (a * phi < C P * phi) by nra. assert (C P * phi <= C P * (b - a)) by nra. lra.
    + destruct (Z ltac:(lia)) as [_ ->]. pose proof (Inc k ltac:(lia)). nra.
Qed.
Lemma divergence_ends : epsilon <= 1 / 2 -> 1 / 2 < divergence M target L t i.
Proof.
  intros Hs. destruct (grows _ _ _ _ _ _ _ Sch Hs) as (_ & _ & _ & _ & Big). pose proof (C_pos P) as C0.
  destruct (diverges L Hs ltac:(lia)) as (e & f & e0 & f0 & _ & ->). rewrite PL in Big. fold (C P) in Big.
  rewrite <- (sqrt_square (1 / 2)) by lra. apply sqrt_lt_1_alt. split; [lra|].
  assert (0 <= sw L * sw L) by nra.
  apply (Rmult_lt_reg_r (C P + sw L * sw L + f)); [lra|]. unfold Rdiv. rewrite (Rmult_assoc (_ + e)), Rinv_l by lra. lra.
Qed.
End AnyInput.

(** * The data *)
Lemma after_node A s ls side0 t a : In (side0, t, a) E -> side0 * s / sw L = 1 -> (s = sw L \/ s = - sw L) ->
  (forall t', Forall (fun c => c < Model.V P)%nat t' -> run M ls t' = final P A s (token t')) ->
  (a < vocabulary M)%nat /\ (forall b, (b < vocabulary M)%nat -> b <> a -> logit M ls t b < logit M ls t a)
  /\ p <= probability M ls t a.
Proof.
  intros I Hside Hs Hrun. destruct (In_nth E _ (1, [], 0%nat) I) as (u0 & Hp & Ep). fold (nth_entry D u0) in Ep.
  destruct (entry_ok V D _ HD I) as (_ & aV & tV & _). cbn [fst snd] in aV, tV. rewrite <- PV in aV, tV. rewrite <- PL in Hside, Hs.
  destruct Rd as [Pn Pe]. pose proof (Pe u0) as X. rewrite Ep in X. injection X as X3 X1 X2. rewrite <- Pn in Hp. rewrite <- X3 in Hside.
  assert (Bos : forall u, (u < nodes P)%nat -> exists w, node P u = 0%nat :: w /\ ~ In 0%nat w).
  { intros u Hu. rewrite Pn in Hu. pose proof (entry_ok V D _ HD (nth_entry_in D u Hu)) as X. rewrite <- Pe in X. apply X. }
  assert (Same : forall u, (u < nodes P)%nat -> side P u = side P u0 -> node P u = t -> answer P u = a).
  { intros u Hu Su Tu. rewrite Pn in Hu. pose proof (nth_entry_in D u Hu) as I'. rewrite <- Pe, Su, Tu, X3 in I'.
    apply (consistent D V _ _ HD I' I). reflexivity. }
  assert (Lg : forall c, logit M ls t c = logits P t s A c) by (intros c; unfold logit, logits; rewrite Hrun by auto; reflexivity).
  split; [exact aV|]. split.
  - intros b Hb Hne. rewrite !Lg. apply (logit_larger P phi G t s u0 a); auto using V_pos.
  - unfold probability. rewrite Lg. replace p with (1 - doubt P) by lra. rewrite (sum_ext _ _ (fun b => exp (logits P t s A b))) by (intros; rewrite Lg; auto).
    apply (probable P phi G t s u0 a); auto using V_pos.
Qed.
Lemma sL : sw L <> 0.
Proof. apply Gs. Qed.
Lemma answers_with r : In r D -> says M (layers M) p (bos :: prompt r) (ended D (label r)).
Proof.
  intros Hr. apply (says_entries _ _ _ 1). intros s a I. apply (after_node (sum (S (last P)) ang) (sw L) _ 1); auto.
  - apply in_flat_map. exists r. split; auto. apply in_or_app; auto.
  - field. apply sL.
  - intros t' Ht'. rewrite <- PL. apply run_all; try apply G; auto using V_pos.
Qed.
Lemma answers_without r : In r D -> says M (without target (layers M)) p (bos :: prompt r) (ended D (distractor r)).
Proof.
  intros Hr. apply (says_entries _ _ _ (-1)). intros s a I. apply (after_node (sum (S (last P)) ang - ang target) (- sw L) _ (-1)); auto.
  - apply in_flat_map. exists r. split; auto. apply in_or_app; auto.
  - field. apply sL.
  - intros t' Ht'. rewrite <- PL. apply run_without; try apply G; auto using V_pos; try lia. apply (flips _ _ _ _ _ _ _ Sch).
Qed.
Theorem clauses :
  (forall t i, Forall (fun a => a < V)%nat t -> (i < length t)%nat ->
     (forall k, (k <= L)%nat -> 0 < norm (width M) (entering M k t i))
     /\ score M target t i = epsilon
     /\ (forall l, (l < L)%nat -> l <> target -> epsilon < score M l t i)
     /\ (epsilon <= 1 / 2 -> (forall k, (target <= k < L)%nat -> divergence M target k t i < divergence M target (S k) t i)
                            /\ 1 / 2 < divergence M target L t i))
  /\ (forall r, In r D -> let ablated := without target (layers M) in
       says M (layers M) p (bos :: prompt r) (ended D (label r))
       /\ says M ablated p (bos :: prompt r) (ended D (distractor r))
       /\ ~ says M ablated 0 (bos :: prompt r) (ended D (label r))).
Proof.
  split; [|intros r Hr; pose proof (answers_without r Hr); eauto using answers_with, distractor_is_wrong]. intros t i Ht _. split; [|split; [|split]].
  - intros k Hk. apply positive; auto.
  - destruct (scored t i Ht target ltac:(lia)) as (f & _ & Z & ->). rewrite Z by lia. apply (target_score _ _ _ _ _ _ _ Sch).
  - intros l Hl Hne. destruct (scored t i Ht l Hl) as (f & F & _ & ->). apply (other_scores _ _ _ _ _ _ _ Sch); auto. lia.
  - intros Hs. split; [intros k Hk; apply divergence_grows|apply divergence_ends]; auto.
Qed.
End Clauses.

(** * Theorem 1 *)
Theorem snowball : snowball_theorem.
Proof.
  intros V D L target epsilon p HD HL He Hp theta half_head rms_eps Ht Heps.
  destruct (parameters_exist V D L target theta half_head epsilon p rms_eps HD HL He Hp Ht Heps)
    as (P & phi & G & Sch & Rd & Pp & PL & PV & Pd & Pt & Ph & Pe).
  exists (model P). split; [cbn [layers model]; rewrite map_length, seq_length; exact PL|].
  split; [exact PV|]. split; [exact Pd|]. split; [cbn; rewrite Pt; reflexivity|]. split; [exact Ph|]. split; [exact Pe|].
  exact (clauses V D L target epsilon p P phi HD HL G Sch Rd PL PV Pp).
Qed.
