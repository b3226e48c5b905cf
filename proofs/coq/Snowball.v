(** The proof of Theorem 1: its frame, and its clauses from the lemmas. *)
From Coq Require Import Reals Lra Lia List Arith Psatz FunctionalExtensionality.
Import ListNotations.
From Snowball Require Import Statement Vectors Kernel Model Runs Recall Schedule Nodes Build.
Open Scope R_scope.

Section Clauses.
Variables (V : nat) (D : list row) (L target : nat) (epsilon p phi : R) (sw : nat -> R) (P : parameters).
Hypotheses (HD : dataset V D) (HL : (target + 2 <= L)%nat) (G : good P phi)
  (Sch : schedule epsilon target (last P) (U P) phi sw (angle P))
  (Rd : reads P (fun _ => sw L) (all_entries D)) (PL : S (last P) = L) (PV : Model.V P = V) (Pp : doubt P
    = 1 - p)
  (Hm : switches P = 1%nat) (Hzero : forall l, which P l = 0%nat) (Hstart : start P = one (sw 0))
  (Hgain : forall l, gain P l = sw (S l) / sw l) (Hsquare : forall l, energy P l = sw l * sw l).
Notation ang := (angle P). Notation M := (model P).
Let Gs : forall l, sw l <> 0.
Proof. apply (switched _ _ _ _ _ _ _ Sch). Qed.
Lemma V_pos : (0 < Model.V P)%nat.
Proof.
  rewrite PV. destruct HD as (N0 & W & _). destruct D as [|r rest]; [congruence|].
  destruct (W r (or_introl eq_refl)) as (N1 & _ & _ & F). rewrite !Forall_app in F. destruct F as (_ & F & _).
  destruct (label r); [congruence|]. inversion F; subst. lia.
Qed.

Lemma one_by_one x y : dot (switches P) (one x) (one y) = x * y.
Proof. apply dot_one. exact Hm. Qed.
Lemma signs b j : (j < switches P)%nat -> one (sw L * sign b) j = sw L * sign (nth j [b] false).
Proof. intros Hj. rewrite Hm in Hj. destruct j; [reflexivity|lia]. Qed.
Lemma ok_entries : answerable (Model.V P) (switches P) (all_entries D).
Proof.
  rewrite PV, Hm. split; [intros e I; exact (entry_ok V D e HD I)|intros e e' I I';
    exact (entries_consistent D V e e' HD I I')].
Qed.
Lemma sized b : dot (switches P) (one (sw L * sign b)) (one (sw L * sign b)) = energy P (S (last P)).
Proof. rewrite one_by_one, Hsquare, PL. unfold sign. destruct b; ring. Qed.
Lemma settled_with : settled P (one (sw (S (last P)))).
Proof.
  rewrite PL. replace (sw L) with (sw L * sign true) by (unfold sign; ring).
  apply (is_settled P (fun _ => sw L) (all_entries D) [true]); auto using ok_entries, signs, sized, V_pos.
Qed.

(** * Every input *)
Section AnyInput.
Variables (t : list nat) (i : nat).
Hypothesis Hin : Forall (fun a => a < V)%nat t.
Let HinP : Forall (fun a => a < Model.V P)%nat t.
Proof. rewrite PV. exact Hin. Qed.
Lemma at_depth k : (k <= L)%nat -> exists x y,
  entering M k t i = state P (sum k ang) (one (sw k)) (token t i) x y
  /\ ((k < L)%nat -> x = zero /\ y = zero) /\ 0 <= dot (nodes P) x x + dot (W P) y y <= phi.
Proof.
  intros Hk. unfold entering. rewrite layers_first by lia. destruct (Nat.eq_dec k L) as [->|Hne].
  - rewrite <- PL, (run_all P) with (sw := sw) by (try apply G; auto using V_pos).
    eexists. eexists. split; [reflexivity|]. split; [lia|].
    pose proof (context_small P phi G (token t) i).
    pose proof (result_small P phi G (one (sw (S (last P)))) (token t) i settled_with). lra.
  - rewrite (run_before P) with (sw := sw) by (try apply G; auto using V_pos; lia). exists zero, zero.
    repeat split; auto; rewrite !dot_zero; pose proof (room _ _ _ _ _ _ _ Sch); lra.
Qed.
Lemma at_depth_without k : (target < k <= L)%nat -> exists x y,
  entering_without M target k t i = state P (sum k ang - ang target) (one (- sw k)) (token t i) x y
  /\ ((k < L)%nat -> x = zero /\ y = zero).
Proof.
  intros Hk. unfold entering_without. rewrite layers_first by lia. pose proof (flips _ _ _ _ _ _ _ Sch) as Fl.
  destruct (Nat.eq_dec k L) as [->|Hne].
  - rewrite <- PL, (run_without P) with (sw := sw) by (try apply G; auto using V_pos; lia).
    eexists. eexists. split; [reflexivity|]. lia.
  - rewrite (run_without_before P) with (sw := sw) by (try apply G; auto using V_pos; lia). exists zero, zero.
    auto.
Qed.
Lemma tok : (token t i < Model.V P)%nat.
Proof. apply token_V; auto using V_pos. Qed.
Lemma positive k : (k <= L)%nat -> 0 < norm (d P) (entering M k t i).
Proof.
  intros Hk. destruct (at_depth k Hk) as (x & y & -> & _ & F). unfold norm.
  rewrite self_state, one_by_one by apply tok.
  apply sqrt_lt_R0. pose proof (C_pos P). nra.
Qed.
Lemma scored k : (k < L)%nat -> exists f, 0 <= f <= phi /\ ((S k < L)%nat -> f = 0) /\
  score M k t i = step_score (U P) sw ang k f.
Proof.
  intros Hk. destruct (at_depth k ltac:(lia)) as (x & y & E1 & Z1 & _).
  destruct (at_depth (S k) Hk) as (x' & y' & E2 & Z2 & F2).
  destruct (Z1 Hk) as [-> ->]. exists (dot (nodes P) x' x' + dot (W P) y' y'). split; auto. split.
  { intros H. destruct (Z2 H) as [-> ->]. rewrite !dot_zero. ring. }
  unfold score, cosine, norm. rewrite E1, E2. cbn [width model].
  rewrite !self_state, dot_state, !one_by_one, !dot_zero by apply tok.
  unfold step_score, step, C. simpl sum. replace (sum k ang - (sum k ang + ang k)) with (- ang k) by ring.
  rewrite cos_neg, !Rplus_0_r. reflexivity.
Qed.
Lemma divergence_zero : divergence M target target t i = 0.
Proof.
  unfold divergence, entering, entering_without. rewrite without_none by (rewrite firstn_length; lia).
  unfold norm at 1. rewrite dot_minus. replace (_ - _ + _) with 0 by ring. rewrite sqrt_0. unfold Rdiv. ring.
Qed.
Lemma diverges k : epsilon <= 1 / 2 -> (target < k <= L)%nat -> exists e f, 0 <= e /\ 0 <= f <= phi
  /\ ((k < L)%nat -> e = 0 /\ f = 0) /\
  divergence M target k t i = sqrt ((4 * (sw k * sw k) + e) / (C P + sw k * sw k + f)).
Proof.
  intros Hs Hk. destruct (grows _ _ _ _ _ _ _ Sch Hs) as (A & _).
  destruct (at_depth k ltac:(lia)) as (x & y & E1 & Z1 & F1).
  destruct (at_depth_without k Hk) as (x' & y' & E2 & Z2).
  exists (dot (nodes P) (minus x x') (minus x x') + dot (W P) (minus y y') (minus y y')),
    (dot (nodes P) x x + dot (W P) y y).
  pose proof (dot_self (nodes P) (minus x x')). pose proof (dot_self (W P) (minus y y')).
  split; [lra|]. split; auto. split.
  { intros H1. destruct (Z1 H1) as [-> ->], (Z2 H1) as [-> ->]. rewrite !dot_minus, !dot_zero. lra. }
  unfold divergence, norm. rewrite E1, E2. cbn [width model].
  rewrite dot_minus, !self_state, dot_state, !one_by_one by apply tok. pose proof (C_pos P).
  rewrite <- sqrt_div_alt by nra. do 2 f_equal. rewrite !dot_minus.
  replace (sum k ang - (sum k ang - ang target)) with (ang target) by ring. rewrite A. unfold C. ring.
Qed.
Lemma fraction a b e f : 0 <= a -> 0 <= b -> 0 <= f -> 0 <= e -> a * (C P + b + f) < b * (C P + a) ->
  4 * a / (C P + a) < (4 * b + e) / (C P + b + f).
Proof.
  intros Ha Hb Hf He' H. pose proof (C_pos P). apply (Rmult_lt_reg_r ((C P + a) * (C P + b + f))); [nra|].
  replace (4 * a / (C P + a) * ((C P + a) * (C P + b + f))) with (4 * (a * (C P + b + f))) by (field; lra).
  replace ((4 * b + e) / (C P + b + f) * ((C P + a) * (C P + b + f))) with ((4 * b + e) * (C P + a)) by (field;
    lra). nra.
Qed.
Lemma divergence_grows k : epsilon <= 1 / 2 -> (target <= k < L)%nat
  -> divergence M target k t i < divergence M target (S k) t i.
Proof.
  intros Hs Hk. destruct (grows _ _ _ _ _ _ _ Sch Hs) as (_ & Inc & Fin & Sm & _). pose proof (C_pos P) as C0.
  destruct (diverges (S k) Hs ltac:(lia)) as (e & f & e0 & f0 & Z & ->).
  assert (Q : 0 < sw (S k) * sw (S k)) by (pose proof (Gs (S k)); nra).
  destruct (Nat.eq_dec k target) as [->|Hne].
  - rewrite divergence_zero. apply sqrt_lt_R0. apply Rdiv_lt_0_compat; nra.
  - destruct (diverges k Hs ltac:(lia)) as (e' & f' & _ & _ & Z' & ->). destruct (Z' ltac:(lia)) as [-> ->].
    rewrite !Rplus_0_r.
    assert (Q' : 0 <= sw k * sw k) by nra.
    apply sqrt_lt_1_alt. split; [apply Rmult_le_pos; [lra|left; apply Rinv_0_lt_compat; lra]|].
    apply fraction; try lra.
    destruct (Nat.eq_dec k (last P)) as [->|Hl].
    + fold (C P) in Sm. pose proof (room _ _ _ _ _ _ _ Sch) as p0.
      set (a := sw (last P) * sw (last P)) in *. set (b := sw (S (last P)) * sw (S (last P))) in *.
      assert (a * f <= a * phi) by nra. assert (a * phi < C P * phi) by nra.
      assert (C P * phi <= C P * (b - a)) by nra. lra.
    + destruct (Z ltac:(lia)) as [_ ->]. pose proof (Inc k ltac:(lia)). nra.
Qed.
Lemma divergence_ends : epsilon <= 1 / 2 -> 1 / 2 < divergence M target L t i.
Proof.
  intros Hs. destruct (grows _ _ _ _ _ _ _ Sch Hs) as (_ & _ & _ & _ & Big). pose proof (C_pos P) as C0.
  destruct (diverges L Hs ltac:(lia)) as (e & f & e0 & f0 & _ & ->). rewrite PL in Big. fold (C P) in Big.
  rewrite <- (sqrt_square (1 / 2)) by lra. apply sqrt_lt_1_alt. split; [lra|].
  assert (0 <= sw L * sw L) by nra.
  apply (Rmult_lt_reg_r (C P + sw L * sw L + f)); [lra|]. unfold Rdiv.
  rewrite (Rmult_assoc (_ + e)), Rinv_l by lra. lra.
Qed.
End AnyInput.

(** * The data *)
Lemma answers_with r : In r D -> says M (layers M) p (bos :: prompt r) (ended D (label r)).
Proof.
  intros Hr. apply (says_all P phi (fun _ => sw L) (all_entries D) [true] (one
    (sw L * sign true)) G Rd ok_entries V_pos) with (A := sum (S (last P)) ang);
    auto using signs, sized; try lra.
  - intros e I. apply in_flat_map. exists r. split; auto. apply in_or_app; auto.
  - intros t' Ht'. unfold sign. rewrite Rmult_1_r, <- PL. apply run_all; try apply G; auto using V_pos.
Qed.
Lemma answers_without r : In r D
  -> says M (without target (layers M)) p (bos :: prompt r) (ended D (distractor r)).
Proof.
  intros Hr. apply (says_all P phi (fun _ => sw L) (all_entries D) [false] (one
    (sw L * sign false)) G Rd ok_entries V_pos) with (A := sum (S (last P)) ang - ang target);
    auto using signs, sized; try lra.
  - intros e I. apply in_flat_map. exists r. split; auto. apply in_or_app; auto.
  - intros t' Ht'. unfold sign. replace (sw L * -1) with (- sw L) by ring. rewrite <- PL.
    apply run_without; try apply G; auto using V_pos; try lia. apply (flips _ _ _ _ _ _ _ Sch).
Qed.
Theorem clauses :
  (forall t i, Forall (fun a => a < V)%nat t -> (i < length t)%nat ->
     (forall k, (k <= L)%nat -> 0 < norm (width M) (entering M k t i))
     /\ score M target t i = epsilon
     /\ (forall l, (l < L)%nat -> l <> target -> epsilon < score M l t i)
     /\ (epsilon <= 1 / 2 -> (forall k, (target <= k < L)%nat
       -> divergence M target k t i < divergence M target (S k) t i)
                            /\ 1 / 2 < divergence M target L t i))
  /\ (forall r, In r D -> let ablated := without target (layers M) in
       says M (layers M) p (bos :: prompt r) (ended D (label r))
       /\ says M ablated p (bos :: prompt r) (ended D (distractor r))
       /\ ~ says M ablated 0 (bos :: prompt r) (ended D (label r))).
Proof.
  split; [|intros r Hr; pose proof (answers_without r Hr); eauto using answers_with, distractor_is_wrong].
  intros t i Ht _. split; [|split; [|split]].
  - intros k Hk. apply positive; auto.
  - destruct (scored t i Ht target ltac:(lia)) as (f & _ & Z & ->). rewrite Z by lia.
    apply (target_score _ _ _ _ _ _ _ Sch).
  - intros l Hl Hne. destruct (scored t i Ht l Hl) as (f & F & _ & ->).
    apply (other_scores _ _ _ _ _ _ _ Sch); auto. lia.
  - intros Hs. split; [intros k Hk; apply divergence_grows|apply divergence_ends]; auto.
Qed.
End Clauses.

(** * Theorem 1 *)
Theorem snowball : snowball_theorem.
Proof.
  intros V D L target epsilon p HD HL He Hp theta half_head size rms_eps Ht Hsize Heps.
  destruct (schedule_exists epsilon target (L - 1) He ltac:(lia)) as (U & phi & sw & ang & Sch).
  set (F := {| Model.V := V; head_half := half_head; Model.theta := theta; Model.rms_eps := rms_eps; group_size := size;
    Model.U := U; switches := 1;
    start := one (sw 0%nat); which _ := 0%nat; gain l := sw (S l) / sw l; angle := ang;
      energy l := sw l * sw l; last := L - 1; doubt := 1 - p |}).
  destruct (parameters_exist F (all_entries D) (fun _ => sw L) phi) as (P & EF & G & Rd & Pd).
  - split; [intros e I; exact (entry_ok V D e HD I)|intros e e' I I';
      exact (entries_consistent D V e e' HD I I')].
  - exact Heps.
  - exact Hsize.
  - exact Ht.
  - cbn. lra.
  - apply (room _ _ _ _ _ _ _ Sch).
  - cbn. lia.
  - cbn. intros l. nra.
  - exists (model P). assert (PL : S (last P) = L) by (rewrite EF; cbn; lia).
    split; [cbn [layers model]; rewrite map_length, seq_length; exact PL|].
    split; [cbn; rewrite EF; reflexivity|]. split; [exact Pd|].
    apply (clauses V D L target epsilon p phi sw P); auto; rewrite EF; auto.
Qed.
